"""One side of the benchmark: the judge stage with its artifact, or a loop of its HTTP client with the same bodies."""

from __future__ import annotations

import importlib
import json
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import urllib3

from benchmarks.common.process import worker_main
from benchmarks.judging.server import MODEL
from wrpo_engine.artifacts import VolumeStore, records
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.stage_config import StageConfig
from wrpo_engine.judging.client import ChatClient, Connection
from wrpo_engine.judging.decision import text_writer
from wrpo_engine.judging.stage import cells_of, run
from wrpo_engine.process.progress import Progress
from wrpo_engine.stage import StageContext, StopRequest, make_context

_WORDS = ("the", "answer", "has", "about", "as", "many", "words", "as", "a", "usual", "one")
_TEMPLATE = (
    "<|im_start|>system\nChoose the better text.<|im_end|>\n<|im_start|>user\n{instruction}\n\nm: {output_1}\n\n"
    "M: {output_2}<|im_end|>"
)
_BENCH, _ANSWERS = "bench/speed", "answers/ours--speed"


def text_of(number: int, words: int) -> str:
    return f"{number} " + " ".join(_WORDS[(number + index) % len(_WORDS)] for index in range(words))


def commit_inputs(root: Path, items: int) -> dict[str, ArtifactRef]:
    """Write a benchmark of one turn an item, and answers of 200 words."""
    names = [f"item-{number}" for number in range(items)]
    bench = [
        {"item_id": name, "index": number, "category": "", "turns": [text_of(number, 40)], "messages": []}
        for number, name in enumerate(names)
    ]
    baseline = [{"item_id": name, "generator": "base", "turns": [text_of(n + 7, 200)]} for n, name in enumerate(names)]
    counts = {"turn": 0, "sample_index": 0, "num_tokens": 200, "seed": 0, "prompt_tokens": 40, "references_cut": 0}
    answers = [
        {"item_id": name, "text": text_of(n, 200), "finish_reason": "stop", **counts} for n, name in enumerate(names)
    ]
    templates = json.dumps({"alpaca_eval_clf": _TEMPLATE})
    return {
        _BENCH: _commit(
            root,
            _BENCH,
            {
                "items.parquet": _frame(bench, records.BENCH_ITEMS),
                "baseline.parquet": _frame(baseline, records.BENCH_BASELINE),
                "templates.json": templates,
            },
        ),
        _ANSWERS: _commit(root, "answer/ours--speed", {"parts/part-00000.parquet": _frame(answers, records.ANSWERS)}),
    }


def _frame(rows: Sequence[Mapping[str, Any]], schema: Any) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=schema)


def _commit(root: Path, stage: str, files: Mapping[str, pl.DataFrame | str]) -> ArtifactRef:
    ref = ArtifactRef(stage=stage, hash="0" * 16)
    writer = VolumeStore(root, lambda: datetime.now(UTC)).writer(ref, config={}, inputs={})
    for name, content in files.items():
        if isinstance(content, str):
            writer.publish(name, text_writer(content))
        else:
            writer.publish(name, content.write_parquet)
    writer.commit(files=list(files))
    return ref


def context_of(root: Path, inputs: Mapping[str, ArtifactRef], endpoint: str, concurrency: int) -> StageContext:
    config = StageConfig.model_validate(
        {
            "experiment": "benchmarks/judging",
            "output": {"stage": "judge/ours--speed--stub", "hash": "0" * 16},
            "inputs": {role: ref.model_dump() for role, ref in inputs.items()},
            "storage": {"kind": "volume"},
            "params": {
                "stage": "judge",
                "model": MODEL,
                "protocol": "Logprobs",
                "benchmark": "Custom",
                "benchmark_protocol": "AlpacaEval2",
                "system": "ours",
                "answers": _ANSWERS,
            },
            "runtime": {"judge_endpoint": endpoint, "judge_concurrency": concurrency},
        }
    )
    return make_context(
        config,
        environ={"WRPO_VOLUME_ROOT": str(root)},
        clock=lambda: datetime.now(UTC),
        progress=Progress([], time.monotonic),
        stop=StopRequest(),
    )


def bodies_of(ctx: StageContext) -> list[bytes]:
    """Return the requests of the stage."""
    params: Any = ctx.config.params
    client = ChatClient(Connection(endpoint=str(ctx.config.runtime.judge_endpoint)), params)
    cell = cells_of(ctx, params)("Logprobs")
    return [json.dumps(client.request_of(question.ask)).encode() for question in cell.questions]


def bare_loop(url: str, bodies: Sequence[bytes], concurrency: int) -> int:
    """Send all bodies with `concurrency` threads over kept connections; return the replies with a verdict."""
    manager = urllib3.PoolManager(maxsize=concurrency)
    headers = {"Content-Type": "application/json"}
    todo = iter(bodies)
    lock = threading.Lock()

    def work(_: int) -> int:
        count = 0
        while True:
            with lock:
                body = next(todo, None)
            if body is None:
                return count
            reply = manager.request("POST", url, body=body, headers=headers, retries=False)
            count += json.loads(reply.data)["choices"][0]["message"]["content"] in {"m", "M"}

    with ThreadPoolExecutor(concurrency) as pool:
        return sum(pool.map(work, range(concurrency)))


def measure(specification: dict[str, Any]) -> dict[str, Any]:
    endpoint, concurrency = specification["endpoint"], specification["concurrency"]
    with tempfile.TemporaryDirectory(prefix="wrpo-bench-") as name:
        root = Path(name)
        ctx = context_of(root, commit_inputs(root, specification["items"]), endpoint, concurrency)
        bodies = bodies_of(ctx)
        # Scores of AlpacaEval need it; its import takes seconds for any number of questions.
        importlib.import_module("sklearn.linear_model")
        begun = time.perf_counter()
        if specification["side"] == "stage":
            count = int(run(ctx).metrics["ok"])
        else:
            count = bare_loop(f"{endpoint}/chat/completions", bodies, concurrency)
        seconds = time.perf_counter() - begun
    return {"verdicts": count, "requests": len(bodies), "seconds": seconds}


if __name__ == "__main__":
    worker_main(measure)
