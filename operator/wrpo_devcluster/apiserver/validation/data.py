"""Validation of ConfigMaps and Secrets."""

from __future__ import annotations

import base64
import json
import re

from wrpo_devcluster.apiserver.apis.errors import Cause, invalid_field, required_field
from wrpo_devcluster.client import JsonObject

_MOST_BYTES = 1024 * 1024
_KEY = re.compile(r"[-._a-zA-Z0-9]+")
_KEY_RULE = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or"
    " 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)
_REDACTED = "<secret contents redacted>"
_NEEDED = {"kubernetes.io/tls": ("tls.crt", "tls.key"), "kubernetes.io/ssh-auth": ("ssh-privatekey",)}
_DOCUMENTS = {
    "kubernetes.io/dockerconfigjson": ".dockerconfigjson",
    "kubernetes.io/dockercfg": ".dockercfg",
}
_BASIC, _LOGIN = "kubernetes.io/basic-auth", ("username", "password")


def validate_config_map(obj: JsonObject) -> list[Cause]:
    """Return the faults of a ConfigMap's keys and size."""
    plain, binary = obj.get("data") or {}, obj.get("binaryData") or {}
    causes: list[Cause] = []
    for key in plain:
        causes += _key(key, f"data[{key}]")
        if key in binary:
            causes.append(invalid_field(f"data[{key}]", key, "duplicate of key present in binaryData"))
    for key in binary:
        causes += _key(key, f"binaryData[{key}]")
    total = sum(len(text.encode()) for text in plain.values()) + sum(_decoded_bytes(text) for text in binary.values())
    return causes + _size(total, "[]")


def validate_secret(obj: JsonObject) -> list[Cause]:
    """Return the faults of a Secret's keys and size, and of the requirements of its type."""
    data = obj.get("data") or {}
    causes: list[Cause] = []
    for key in data:
        causes += _key(key, f"data[{key}]")
    causes += _size(sum(_decoded_bytes(text) for text in data.values()), "data")
    kind = obj.get("type", "")
    # A key file must have content, a certificate may be empty.
    causes += [
        required_field(f"data[{key}]")
        for key in _NEEDED.get(kind, ())
        if key not in data or (key == "ssh-privatekey" and not data[key])
    ]
    if kind in _DOCUMENTS:
        causes += _document(data, _DOCUMENTS[kind])
    if kind == _BASIC and not data.keys() & set(_LOGIN):
        causes += [required_field(f"data[{key}]") for key in _LOGIN]
    return causes


def _key(key: str, path: str) -> list[Cause]:
    faults = []
    if len(key) > 253:
        faults.append("must be no more than 253 bytes")
    if not _KEY.fullmatch(key):
        faults.append(_KEY_RULE)
    if key in {".", ".."}:
        faults.append(f"must not be '{key}'")
    elif key.startswith(".."):
        faults.append("must not start with '..'")
    return [invalid_field(path, key, fault) for fault in faults]


def _size(total: int, path: str) -> list[Cause]:
    if total <= _MOST_BYTES:
        return []
    return [Cause("FieldValueTooLong", path, f"Too long: may not be more than {_MOST_BYTES} bytes")]


def _decoded_bytes(text: str) -> int:
    """Return the decoded size of a base64 text, in bytes."""
    return len(text) * 3 // 4 - text[-2:].count("=")


def _document(data: dict[str, str], key: str) -> list[Cause]:
    if key not in data:
        return [required_field(f"data[{key}]")]
    try:
        json.loads(base64.b64decode(data[key]))
    except ValueError as problem:
        return [invalid_field(f"data[{key}]", _REDACTED, str(problem))]
    return []
