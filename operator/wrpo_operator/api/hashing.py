"""Canonical JSON and hashes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from wrpo_engine.config import CONTRACT_VERSION

HASH_LENGTH = 16


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII; infinite numbers are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """Return 16 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:HASH_LENGTH]


def stage_hash(kind: str, params: Mapping[str, Any], inputs: Mapping[str, str], salt: str) -> str:
    """Return the hash of what a stage computes: kind, parameters, upstream hashes by role, contract version.

    It excludes resources, queues, retries and images, so changing them re-runs nothing.
    """
    return digest(
        {
            "contract": CONTRACT_VERSION,
            "kind": kind,
            "params": params,
            "inputs": dict(inputs),
            "salt": salt,
        }
    )


def artifact_key(storage: Mapping[str, Any], stage: str, hash_: str) -> str:
    """Return a key that is equal for two experiments of a namespace that would write the same artifact."""
    return digest({"storage": storage, "stage": stage, "hash": hash_})
