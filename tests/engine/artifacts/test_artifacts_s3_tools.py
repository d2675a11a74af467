"""`wrpo-engine convert` and `lint` against a bucket: an artifact goes there and is read by address, URI and path."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.s3_server import S3Server

from wrpo_engine.formats.command import main as convert
from wrpo_engine.linting.command import main as lint

ROW = {
    "prompt_id": "ab" * 32,
    "prompt": {"role": "user", "content": "hi?"},
    "chosen": [{"role": "assistant", "content": "best"}, {"role": "assistant", "content": "good"}],
    "rejected": [{"role": "assistant", "content": "bad"}],
}


@pytest.fixture
def storage(s3: S3Server, bucket: str, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    monkeypatch.setenv("WRPO_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    yield f"s3://{bucket}/{root}"
    # Nothing but what the test put there: no directory that is named like an address.
    assert {path.name for path in tmp_path.iterdir()} <= {"rows.jsonl", "scratch", "back.jsonl"}


@pytest.mark.parametrize("kind", ["published", "jsonl", "parquet", "datasets"])
@pytest.mark.parametrize("by_storage", [False, True])
def test_every_format_is_written_to_a_bucket_and_read_from_there(
    storage: str, kind: str, by_storage: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"out{'' if kind == 'datasets' else '.parquet' if kind == 'parquet' else '.jsonl'}"
    output = f"storage://made/{name}" if by_storage else f"{storage}/made/{name}"
    options = ["--storage", storage] if by_storage else []
    assert convert(["rows.jsonl", output, "--to", kind, *options]) == 0
    assert convert([f"{storage}/made/{name}", "back.jsonl", "--to", "published"]) == 0
    assert json.loads(Path("back.jsonl").read_text()) == ROW
    capsys.readouterr()
    assert convert(["rows.jsonl", output, "--to", kind, *options]) == 65
    assert f"{storage}/made/{name} already exists" in capsys.readouterr().err


def test_a_prefix_has_the_splits_that_its_names_say(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in {"train": "to train on", "test": "held out"}.items():
        row = {**ROW, "prompt": {"role": "user", "content": text}}
        Path("rows.jsonl").write_text(json.dumps(row) + "\n")
        assert convert(["rows.jsonl", f"{storage}/set/data/{name}-00000-of-00001.jsonl", "--to", "jsonl"]) == 0
    for split, text in {"train": "to train on", "test": "held out"}.items():
        assert convert([f"{storage}/set", "back.jsonl", "--to", "jsonl", "--split", split]) == 0
        assert json.loads(Path("back.jsonl").read_text())["prompt"] == text
        Path("back.jsonl").unlink()
    capsys.readouterr()
    assert convert([f"{storage}/set", "back.jsonl", "--to", "jsonl", "--split", "nosuch"]) == 78
    assert "/set has the splits test, train\n" in capsys.readouterr().err


NOWHERE = ["gs://bucket/x.jsonl", "https://host/x.jsonl", "storage://x.jsonl"]


@pytest.mark.parametrize(
    ("output", "kind"),
    [*itertools.product(NOWHERE, ["jsonl", "artifact"]), ("s3://bucket", "jsonl")],
)
def test_an_output_that_cannot_be_written_is_refused(
    storage: str, output: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(["rows.jsonl", output, "--to", kind]) == 64
    assert "error:" in capsys.readouterr().err


def test_rows_go_to_a_bucket_and_come_back(
    s3: S3Server,
    bucket: str,
    root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    monkeypatch.setenv("WRPO_SCRATCH", str(tmp_path / "scratch"))
    storage = f"s3://{bucket}/{root}"
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    assert convert([str(tmp_path / "rows.jsonl"), storage, "--to", "artifact"]) == 0
    address = capsys.readouterr().out.strip()
    places = [
        (address, ["--storage", storage]),
        (f"{storage}/{address}", []),
        (f"{storage}/{address}/triples.jsonl", []),
        (f"storage://{address}/triples.parquet", ["--storage", storage]),
    ]
    for number, (place, options) in enumerate(places):
        out = tmp_path / f"{number}.jsonl"
        assert convert([place, str(out), "--to", "published", *options]) == 0
        assert json.loads(out.read_text()) == ROW
        capsys.readouterr()
        assert lint([place, "--json", *options]) == 0
        assert json.loads(capsys.readouterr().out)["rows"] == 1
    assert convert([f"{storage}/nothing.jsonl", str(tmp_path / "x.jsonl"), "--to", "published"]) == 65
    assert "there is no file or directory" in capsys.readouterr().err
