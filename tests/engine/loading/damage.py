"""Ways in which the files of a model directory are damaged; drawn from a seed, so every run damages them alike."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4976698672\n"
_VALUES: tuple[Any, ...] = (
    None,
    -1,
    0,
    1,
    3,
    10**30,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
    "\ud83d\ude00",
    True,
    [],
    {},
    [[]],
    [None],
    {"x": {"y": []}},
    ["x"] * 3,
)


def damage(directory: Path, draw: random.Random, names: str = "*") -> str:
    """Damage one file of a model directory; return what was done, in words."""
    files = sorted(
        path for path in directory.glob(names) if path.is_file() and path.suffix in {".json", ".safetensors"}
    )
    path = draw.choice(files)
    if path.suffix == ".safetensors":
        change = draw.choice([_whole, _header_value, _header_bytes, _header_length])
    else:
        change = draw.choice([_whole, _value, _value, _value])
    return f"{path.name}: {change(path, draw)}"


def _whole(path: Path, draw: random.Random) -> str:
    """Replace the whole file."""
    content = path.read_bytes()
    kinds: dict[str, Callable[[], object]] = {
        "empty": lambda: path.write_bytes(b""),
        "cut": lambda: path.write_bytes(content[: draw.randrange(len(content))]),
        "pointer": lambda: path.write_text(POINTER),
        "UTF-16": lambda: path.write_bytes(content.decode("latin-1").encode("utf-16")),
        "not UTF-8": lambda: path.write_bytes(b"\xff\xfe" + content),
        "byte order mark": lambda: path.write_bytes(b"\xef\xbb\xbf" + content),
        "nested": lambda: path.write_text('{"a":' * 100_000),
        "nested and closed": lambda: path.write_text('{"a":' * 3000 + "1" + "}" * 3000),
        "another value": lambda: path.write_text(draw.choice(["null", "[]", "1", '"x"', "{}", "NaN"])),
        "directory": lambda: (path.unlink(), path.mkdir()),
        "twice": lambda: path.write_bytes(content * 2),
        "removed": path.unlink,
        "link to nowhere": lambda: (path.unlink(), path.symlink_to("nowhere")),
    }
    kind = draw.choice(sorted(kinds))
    kinds[kind]()
    return kind


def _value(path: Path, draw: random.Random) -> str:
    """Replace, remove or add one value of a JSON file."""
    content = json.loads(path.read_text())
    return _write(path, content, _change(content, draw))


def _write(path: Path, content: Any, done: str) -> str:
    path.write_text(json.dumps(content))
    return done


def _change(content: Any, draw: random.Random) -> str:
    place, key = content, None
    trail = []
    while isinstance(place, dict | list) and place and (key is None or draw.random() < 0.6):
        keys = sorted(place) if isinstance(place, dict) else list(range(min(len(place), 20)))
        key = draw.choice(keys)
        parent, place = place, place[key]
        trail.append(str(key))
    if key is None:
        return "nothing to change"
    if draw.random() < 0.15:
        del parent[key]
        return f"{'.'.join(trail)} removed"
    parent[key] = draw.choice(_VALUES)
    return f"{'.'.join(trail)} = {str(parent[key])[:40]}"


def _split(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _join(path: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)


def _header_value(path: Path, draw: random.Random) -> str:
    header, data = _split(path)
    done = _change(header, draw)
    _join(path, json.dumps(header).encode(), data)
    return f"header, {done}"


def _header_bytes(path: Path, draw: random.Random) -> str:
    header, data = _split(path)
    content = bytearray(json.dumps(header).encode())
    for _ in range(draw.randrange(1, 5)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    _join(path, bytes(content), data)
    return "header, other bytes"


def _header_length(path: Path, draw: random.Random) -> str:
    header, data = _split(path)
    length = draw.choice([0, 1, 7, 2**31, 2**63, 2**64 - 1])
    _join(path, json.dumps(header).encode(), data, length)
    return f"header length {length}"


def copy_of(source: Path, target: Path) -> Path:
    """Copy a model directory; what an earlier damage left there goes."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target
