"""Data sets by their hub id, read by the real commands from a server that speaks the hub's endpoints."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
from support.hub_server import Hub, HubFault, hub_server
from support.patience import LIMIT_S

from wrpo_engine.config import ExitCode
from wrpo_engine.formats.reading import read_triples

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]


def rows(split: str) -> pl.DataFrame:
    numbers = range(3)
    return pl.DataFrame(
        {
            "prompt": [f"{split} {number}?" for number in numbers],
            "source_chosen": [f"best {number}" for number in numbers],
            "target_chosen": [f"good {number}" for number in numbers],
            "rejected": [f"bad {number}" for number in numbers],
        }
    )


def parquet(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()


def published(table: pl.DataFrame) -> bytes:
    lines = (
        {
            "prompt": {"role": "user", "content": row["prompt"]},
            "chosen": [row["source_chosen"], row["target_chosen"]],
            "rejected": [row["rejected"]],
        }
        for row in table.to_dicts()
    )
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


FILES = {
    "Parquet with two splits": {
        "data/train-00000-of-00001.parquet": parquet(rows("train")),
        "data/test-00000-of-00001.parquet": parquet(rows("test")),
        "README.md": b"# triples",
    },
    "the published format": {"train.jsonl": published(rows("train")), "test.jsonl": published(rows("test"))},
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server(Hub("org/triples", dict(FILES["Parquet with two splits"]), kind="datasets")) as running:
        yield running


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def python(tmp_path: Path, hub: Hub) -> Run:
    """`python("-m", "wrpo_engine", ...)` in a process of its own: the hub's address is read on import."""

    def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), **online, **environ},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    return run


def convert(python: Run, name: str, split: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "wrpo_engine", "convert", name, "out.parquet", "--to", "parquet", "--split", split, **environ)


@pytest.mark.parametrize("files", FILES.values(), ids=FILES.keys())
def test_triples_of_a_hub_id_are_read_and_again_without_the_hub(
    python: Run, hub: Hub, tmp_path: Path, files: dict[str, bytes]
) -> None:
    hub.files = files
    for offline in ("0", "1"):
        hub.asked.clear()
        done = convert(python, "org/triples", "test", HF_HUB_OFFLINE=offline)
        assert done.returncode == 0, done.stderr
        table = read_triples(str(tmp_path / "out.parquet"))
        (tmp_path / "out.parquet").unlink()
        assert table.select(rows("test").columns).equals(rows("test"))
        assert bool(hub.asked) == (offline == "0")


def test_prompts_of_a_hub_id_are_read(python: Run) -> None:
    script = (
        "from wrpo_engine.prompts.reader import PromptColumn, read_values\n"
        "name = 'org/triples'\n"
        "column = PromptColumn(dataset=name, path=name, config=None, split='train', column='prompt')\n"
        "print(*read_values(column), sep=';')"
    )
    done = python("-c", script)
    assert done.stdout.strip() == "train 0?;train 1?;train 2?", done.stderr


REFUSALS: dict[str, tuple[str, str, HubFault | None, int, str]] = {
    "a data set that is not there": (
        "org/none",
        "test",
        None,
        ExitCode.CONFIG,
        "there is no such data set on the hub, or it is private",
    ),
    "a gated data set": (
        "org/triples",
        "test",
        HubFault(401, {"X-Error-Code": "GatedRepo"}),
        ExitCode.CONFIG,
        "A private or gated one needs a token (HF_TOKEN).",
    ),
    "an unknown split": ("org/triples", "dev", None, ExitCode.CONFIG, "Should be one of ['train', 'test']"),
    "a hub that is down": (
        "org/triples",
        "test",
        HubFault(503),
        ExitCode.TEMPORARY,
        "it cannot be downloaded now",
    ),
    "a hub that limits requests": (
        "org/triples",
        "test",
        HubFault(429, {"Retry-After": "1"}),
        ExitCode.TEMPORARY,
        "it cannot be downloaded now",
    ),
}
"""(hub id, split, fault, exit code, what is said)"""


@pytest.mark.parametrize(("name", "split", "fault", "code", "said"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_keeps_a_data_set_from_being_read_is_told(
    python: Run, hub: Hub, name: str, split: str, fault: HubFault | None, code: int, said: str
) -> None:
    hub.fault = lambda _path: fault
    done = convert(python, name, split)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_that_breaks_down_between_two_files_is_a_matter_for_later(python: Run, hub: Hub) -> None:
    hub.fault = lambda path: HubFault(503) if path.endswith(".parquet") else None
    done = convert(python, "org/triples", "test")
    assert done.returncode == ExitCode.TEMPORARY, done.stderr
