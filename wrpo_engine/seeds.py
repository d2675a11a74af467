"""Seeds of random numbers, derived from their purpose alone."""

from __future__ import annotations

import hashlib
import json


def seed_of(*parts: int | str) -> int:
    """Return a number in [0, 2**62) that follows from the parts alone, on every machine and version of Python."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8]) >> 2
