"""Stages that are stopped again and again, with other numbers of shards each time, end with the same bytes."""

from __future__ import annotations

import hashlib
import itertools
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from engine_support import stage_config
from stage_process import start_sampling
from support.patience import LIMIT_S
from support.stopping import kill_within_work

from wrpo_engine.artifacts import records
from wrpo_engine.config import ArtifactRef

pytestmark = pytest.mark.slow
STOPS = 20
NUM_PROMPTS = 240
HASH = "00000000000000aa"


@dataclass(frozen=True)
class Storage:
    """A volume with the inputs of a stage, and the artifact that is made on it."""

    root: Path
    stage: str
    inputs: Mapping[str, ArtifactRef]
    params: Mapping[str, Any]

    @property
    def artifact(self) -> Path:
        return self.root / self.stage / HASH

    def is_committed(self) -> bool:
        return (self.artifact / "manifest.json").exists()

    def parts(self) -> dict[str, int]:
        """Return the published parts with the times at which they were made."""
        return {path.name: path.stat().st_mtime_ns for path in (self.artifact / "parts").glob("part-*.parquet")}

    def contents(self) -> dict[str, str]:
        files = (path for path in sorted(self.artifact.rglob("*")) if path.is_file() and ".tmp-" not in path.name)
        return {str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def start(self, shard: int = 0, shards: int = 1) -> BaseProcess:
        config = stage_config(self.params, self.inputs, stage=self.stage, hash_=HASH, runtime={"shards": shards})
        path = self.root / "config.json"
        path.write_text(config.model_dump_json())
        environ = {
            "WRPO_VOLUME_ROOT": str(self.root),
            "WRPO_TERMINATION_MESSAGE_PATH": str(self.root / "termination-log"),
            "JOB_COMPLETION_INDEX": str(shard),
        }
        return start_sampling(path, environ, stage=self.params["stage"])


COMMON = {"backend": "Transformers", "samples_per_prompt": 2, "max_tokens": 12, "prompts_per_part": 2}


def sampling_storage(root: Path, commit_artifact: Any, model: Path) -> Storage:
    texts = [f"question number {number}?" for number in range(NUM_PROMPTS)]
    ids = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    table = pl.DataFrame({"prompt_id": ids, "prompt": texts})
    inputs = {"prompts": commit_artifact("prepare", {"preference.parquet": table}, root=root)}
    params = {"stage": "sample", "source": "tiny", "model": {"name": str(model)}, "parts": ["preference"], **COMMON}
    return Storage(root, "sample/tiny", inputs, params)


def answering_storage(root: Path, commit_artifact: Any, model: Path) -> Storage:
    """Two turns to an item, and the native files at the end."""
    rows = [
        {
            "item_id": f"q{number}",
            "index": number,
            "category": "writing",
            "turns": [f"question number {number}?", "Why?"],
            "messages": [],
            "temperature": 0.7 * (number % 2),
        }
        for number in range(NUM_PROMPTS // 2)
    ]
    items = pl.DataFrame(rows, schema=records.BENCH_ITEMS)
    inputs = {"bench/mt": commit_artifact("bench/mt", {"items.parquet": items}, root=root)}
    params = {
        "stage": "answer",
        "system": "tiny",
        "benchmark": "MTBench",
        "model": {"name": str(model)},
        "uses_item_temperature": True,
        **COMMON,
    }
    return Storage(root, "answer/tiny--mt", inputs, params)


def wait_for_new_parts(storage: Storage, process: BaseProcess, count: int) -> None:
    before = len(storage.parts())
    while process.exitcode is None and len(storage.parts()) < before + count:
        time.sleep(0.002)


def stop_somewhere(storage: Storage, process: BaseProcess, chance: random.Random) -> bool:
    """Stop the process at a random moment; False if it was done before."""
    if chance.random() < 0.25:
        # While it starts: imports, tokenizer, model.
        process.join(chance.uniform(0.0, 0.5))
    else:
        wait_for_new_parts(storage, process, chance.randint(1, 3))
        process.join(chance.uniform(0.0, 0.02))
    number = signal.SIGTERM if chance.random() < 0.25 else signal.SIGKILL
    assert process.pid is not None
    kill_within_work(process.pid, number)
    process.join(LIMIT_S)
    if process.exitcode == 0:
        return False
    # A SIGTERM before the stage has installed its handler ends it like any program.
    assert process.exitcode in ({143, -signal.SIGTERM} if number == signal.SIGTERM else {-signal.SIGKILL})
    return True


@pytest.mark.parametrize("make", [sampling_storage, answering_storage], ids=["sample", "answer"])
def test_twenty_stops_at_random_points_change_no_byte(
    tmp_path: Path, commit_artifact: Any, tiny_model_dir: Path, make: Callable[[Path, Any, Path], Storage]
) -> None:
    whole = make(tmp_path / "whole", commit_artifact, tiny_model_dir)
    process = whole.start()
    process.join(LIMIT_S)
    assert process.exitcode == 0

    chance = random.Random(20)
    stops, most_kept = 0, 0
    for number in itertools.count():
        # A quick machine finishes an artifact before it was stopped twenty times: the stops go on with another one.
        broken = make(tmp_path / f"broken-{number}", commit_artifact, tiny_model_dir)
        kept: dict[str, int] = {}
        while stops < STOPS and not broken.is_committed():
            shards = chance.choice([1, 2, 3])
            stops += stop_somewhere(broken, broken.start(chance.randrange(shards), shards), chance)
            kept |= {name: made for name, made in broken.parts().items() if name not in kept}
        if not broken.is_committed():
            process = broken.start()
            process.join(LIMIT_S)
            assert process.exitcode == 0
        assert broken.contents() == whole.contents()
        # What was published before a stop was not made again after it.
        assert {name: made for name, made in broken.parts().items() if name in kept} == kept
        most_kept = max(most_kept, len(kept))
        if stops == STOPS:
            break
    assert most_kept > 0
