"""`wrpo-engine convert` and `lint` against a bucket: an artifact goes there and is read by address, URI and path."""

from __future__ import annotations

import json
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
