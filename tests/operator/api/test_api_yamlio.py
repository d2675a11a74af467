"""YAML means here what kubectl sends: a table, and random scalars, each compared with the real kubectl."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.patience import LIMIT_S

from wrpo_operator.api.yamlio import YamlError, json_number, load, load_all, plain_value

ROOT = Path(__file__).parents[3]
KUBECTL = next(filter(None, (shutil.which("kubectl", path=str(ROOT / ".bin")), shutil.which("kubectl"))), None)
HEAD = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n"
SCALARS = [
    "5e-7",
    "1e3",
    "1E5",
    "1e-1",
    "12e03",
    "6.8523015e+5",
    "0.1e1",
    "1e+5",
    "-1.5e-3",
    ".5",
    "-.5",
    "+.5",
    "1.",
    "1.e1",
    "0.e1",
    "1.0",
    "0.0",
    "-0",
    "+1",
    "0",
    "00",
    "9.0",
    "1e21",
    "1e22",
    "1e400",
    "2024-06-01",
    "2001-12-14t21:59:43.10-05:00",
    "1:30",
    "1:30:30",
    "190:20:30",
    "08:00",
    "0o17",
    "0O17",
    "0o8",
    "0o",
    "-0o7",
    "0b101",
    "-0b1",
    "0b2",
    "0b",
    "0x1F",
    "0X1f",
    "-0x1F",
    "+0x1",
    "0x1_F",
    "0xG",
    "0x",
    "017",
    "-012",
    "012_3",
    "09",
    "0_7",
    "1_000",
    "1__0",
    "_1",
    "1_",
    "1_0.5",
    "685_230.15",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "-9223372036854775808",
    "-9223372036854775809",
    "100000000000000000000000",
    "yes",
    "Yes",
    "YES",
    "no",
    "No",
    "NO",
    "on",
    "On",
    "ON",
    "off",
    "Off",
    "OFF",
    "y",
    "Y",
    "n",
    "N",
    "true",
    "True",
    "TRUE",
    "tRue",
    "false",
    "False",
    "FALSE",
    "~",
    "null",
    "Null",
    "NULL",
    "nULL",
    ".e5",
    "e5",
    "1e",
    "--1",
    "1-1",
    "1.2.3",
    "Infinity",
    "inf",
    "nan",
    ".Inf2",
    "=",
    "a-",
    "1a",
    "+a",
    "-",
    "12_",
    "0_",
    "0x_1",
    "1e1_0",
    "1_e5",
    "+.5e3",
    ".5_0",
    "5e-07",
    "1e1.5",
]
DOCUMENTS: dict[str, str] = {
    "a key that comes twice": f"{HEAD}data: {{a: 1, a: 2}}\n",
    "keys that are no texts": f"{HEAD}data: {{1: a, true: b, 1.5: c, 0x10: d, 1e3: e, 2024-01-01: f, 1:30: g}}\n",
    "a merge": f"{HEAD}base: &b {{x: 1, w: 2}}\ndata: {{<<: *b, w: 3}}\n",
    "a merge behind a key": f"{HEAD}base: &b {{x: 1, w: 2}}\ndata: {{w: 3, <<: *b}}\n",
    "a merge of several": f"{HEAD}base: &b {{x: 1, w: 2}}\nc: &c {{x: 7, z: 9}}\ndata: {{<<: [*b, *c]}}\n",
    "a quoted merge sign": f'{HEAD}data: {{"<<": {{a: 1}}}}\n',
    "tags": f'{HEAD}data: {{a: !!str 5, b: !!int "5", c: !!float 1, d: !foo bar, e: !!binary aGk=, f: !!timestamp 2024-01-01, h: !!bool yes, i: !!str yes}}\n',  # noqa: E501
    "quoted texts": f"{HEAD}data: {{a: '5e-7', b: \"yes\", c: '', d: \"\\x41\\u00e9\"}}\n",
    "blocks": f"{HEAD}data:\n  a: |\n    yes\n  b: >-\n    1\n    2\n",
    "several documents": f"{HEAD}--- \n{HEAD}--- # comment\n{HEAD}---\n# nothing\n---\n",
    "an end of a document": f"{HEAD}data: {{a: 1}}\n...\n{HEAD}",
    "a byte order mark": f"\ufeff{HEAD}",
    "JSON": '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"a":1.0,"b":5e-7,"c":12345678901234567890}',
    "an alias": f"{HEAD}data: {{a: &x [1, 2], b: *x}}\n",
}
REFUSED: dict[str, str] = {
    "infinity": f"{HEAD}data: {{a: .inf}}\n",
    "not a number": f"{HEAD}data: {{a: .nan}}\n",
    "a null key": f"{HEAD}data: {{~: a}}\n",
    "a list as a key": f"{HEAD}data: {{? [x] : y}}\n",
    "a merge of a number": f"{HEAD}data: {{<<: 5}}\n",
    "an anchor in itself": f"{HEAD}data: &d {{a: *d}}\n",
    "an unknown anchor": f"{HEAD}data: {{a: *y}}\n",
    "half a pair": f'{HEAD}data: {{a: "\\ud83e\\udd99"}}\n',
    "a tab": f"{HEAD}data:\n\ta: 1\n",
    "another YAML": f"%YAML 1.2\n---\n{HEAD}",
    "an integer with a fraction": f"{HEAD}data: {{a: !!int 1.5}}\n",
    "a text as null": f"{HEAD}data: {{a: !!null x}}\n",
    "aliases of aliases": HEAD
    + "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 7)),
}
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is neither in .bin nor in the PATH")


def kubectl(text: str, path: Path) -> list[Any] | None:
    """Return the objects that kubectl sends for a file; None where it refuses it. It prints 1e19 with all digits."""
    path.write_text(text, encoding="utf-8")
    command = [str(KUBECTL), "label", "--local", "-f", str(path), "added=label", "-o", "json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    if run.returncode:
        return None
    decoder = json.JSONDecoder(parse_int=lambda one: json_number(int(one)))
    rest, found = run.stdout.strip(), []
    while rest:
        value, end = decoder.raw_decode(rest)
        value["metadata"].pop("labels")
        found.append(value)
        rest = rest[end:].lstrip()
    return found


def made_up(count: int) -> list[str]:
    """Scalars from the letters of which numbers, dates and booleans are made."""
    source = random.Random(7)
    return ["".join(source.choices("0011257_.-+eExob:", k=source.randint(1, 7))) for _ in range(count)]


def plain(scalars: list[str]) -> list[str]:
    """Those that are one plain scalar in a block sequence."""
    return [one for one in scalars if one[-1] != ":" and one not in {"-", "---"} and not one.startswith(("- ", "? "))]


@needs_kubectl
@pytest.mark.parametrize("scalars", [plain(SCALARS), plain(made_up(400))], ids=["listed", "random"])
def test_scalars_mean_what_kubectl_sends(scalars: list[str], tmp_path: Path) -> None:
    lines = "".join(f"- {scalar}\n" for scalar in scalars)
    sent = kubectl(f"{HEAD}data:\n{lines}", tmp_path / "f.yaml")
    assert sent is not None
    found = {scalar: plain_value(scalar) for scalar in scalars}
    different = {
        scalar: (value, found[scalar])
        for scalar, value in zip(scalars, sent[0]["data"], strict=True)
        if (type(found[scalar]), found[scalar]) != (type(value), value)
    }
    assert different == {}


@needs_kubectl
@pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS.keys())
def test_documents_mean_what_kubectl_sends(text: str, tmp_path: Path) -> None:
    sent = kubectl(text, tmp_path / "f.yaml")
    assert sent is not None
    assert load_all(text) == sent


@needs_kubectl
@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
def test_what_kubectl_refuses_is_refused(text: str, tmp_path: Path) -> None:
    assert kubectl(text, tmp_path / "f.yaml") is None
    with pytest.raises(YamlError):
        load_all(text)


def test_a_key_that_comes_twice_is_told() -> None:
    told: list[str] = []
    assert load_all("a: 1\nb: 2\na: 3\n", doubled=told.append) == [{"a": 3, "b": 2}]
    assert told == ["line 3: key `a` is given twice"]


def test_a_refusal_says_where_and_what_to_do() -> None:
    with pytest.raises(
        YamlError, match=r"^line 2, column 4: \.inf is no number that JSON can hold; write a finite number$"
    ):
        load("a: 1\nb: .inf\n")


def test_deep_nesting_is_a_refusal_not_a_crash() -> None:
    with pytest.raises(YamlError, match="nested too deep"):
        load("[" * 20000 + "]" * 20000)
