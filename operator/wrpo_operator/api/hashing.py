"""Canonical JSON and the hashes made of it."""

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
    """16 hex digits of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:HASH_LENGTH]


def stage_hash(kind: str, params: Mapping[str, Any], inputs: Mapping[str, str], salt: str) -> str:
    """Hash of what a stage computes: kind, parameters, hashes of the upstream stages by role, contract version.

    Resources, queues, retries and images are not in it, so changing them re-runs nothing.
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
    """Equal for two experiments of a namespace that would write the same artifact."""
    return digest({"storage": storage, "stage": stage, "hash": hash_})
