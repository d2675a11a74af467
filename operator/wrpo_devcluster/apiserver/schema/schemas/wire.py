"""Derive `wire.json.gz` (protobuf field numbers and presence rules of the served kinds) from Go struct tags.

usage: python -m wrpo_devcluster.apiserver.schema.schemas.wire K8S_IO_API_REPO APIMACHINERY_REPO APIEXTENSIONS_REPO

A development-time program; the arguments are git directories of the published Go modules. Only interface facts are
taken: JSON name, field number, wire type and presence. An unset field is written as its zero
(`always`) or as null (`null`). Others may hold an explicit zero (`pointer`) or are left out when empty (`omit`).
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from wrpo_devcluster.apiserver.schema.schemas import build

API = (
    "core", "apps", "autoscaling", "batch", "coordination", "rbac", "authentication", "authorization", "networking",
    "policy", "scheduling", "storage", "admissionregistration", "events", "discovery",
)  # fmt: skip
TYPE = re.compile(r"^type (\w+) struct \{$")
FIELD = re.compile(r"^\t(?:(\w+) +)?(\S+) +`([^`]*)`")
TAG = re.compile(r'(\w+):"([^"]*)"')
META = "io.k8s.apimachinery.pkg.apis.meta.v1"
EXTENSIONS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1"


def _show(repository: str, path: str) -> str:
    return subprocess.run(
        ["git", "--git-dir", repository, "show", f"HEAD:{path}"], check=True, capture_output=True, text=True
    ).stdout


def _presence(go_type: str, json_options: list[str], structs: set[str]) -> str:
    if go_type.startswith("*"):
        return "pointer" if "omitempty" in json_options else "null"
    if "omitzero" in json_options:
        return "omit"
    if "omitempty" not in json_options:
        return "always"
    return "always" if go_type.rsplit(".", 1)[-1] in structs and "[" not in go_type else "omit"


def parse(text: str, structs: set[str]) -> dict[str, dict[str, list[Any]]]:
    """Return {type: {json name: [number, wire type, repeated, presence, inlined type or ""]}}."""
    found: dict[str, dict[str, list[Any]]] = {}
    current: dict[str, list[Any]] | None = None
    for line in text.splitlines():
        if start := TYPE.match(line):
            current = found.setdefault(start.group(1), {})
        elif line == "}":
            current = None
        elif current is not None and (field := FIELD.match(line)):
            tags = dict(TAG.findall(field.group(3)))
            name, *options = tags.get("json", "").split(",")
            wire = tags.get("protobuf", "").split(",")
            if len(wire) < 3:
                continue
            go_type = field.group(2)
            inlined = go_type.rsplit(".", 1)[-1].lstrip("*") if not name else ""
            current[name or f"<{inlined}>"] = [
                int(wire[1]), wire[0], wire[2] == "rep", _presence(go_type, options, structs), inlined,
            ]  # fmt: skip
    return found


def main() -> None:
    """Write `wire.json.gz` from the repositories that the command line names."""
    api, machinery, extensions = sys.argv[1:4]
    sources = {f"io.k8s.api.{group}.v1": _show(api, f"{group}/v1/types.go") for group in API}
    sources[META] = _show(machinery, "pkg/apis/meta/v1/types.go")
    crd = "pkg/apis/apiextensions/v1"
    sources[EXTENSIONS] = _show(extensions, f"{crd}/types.go") + _show(extensions, f"{crd}/types_jsonschema.go")
    structs = {"Time", "MicroTime"} | {
        match.group(1) for text in sources.values() for line in text.splitlines() if (match := TYPE.match(line))
    }
    kept = set(build.build()["definitions"])
    table: dict[str, Any] = {}
    for package, text in sources.items():
        parsed = parse(text, structs)
        inlined = {entry[4] for fields in parsed.values() for entry in fields.values() if entry[4]}
        table |= {
            f"{package}.{name}": fields
            for name, fields in parsed.items()
            if fields and (f"{package}.{name}" in kept or name in inlined)
        }
    path = Path(__file__).with_name("wire.json.gz")
    text = json.dumps(table, separators=(",", ":"), sort_keys=True)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{path}: {len(table)} types, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
