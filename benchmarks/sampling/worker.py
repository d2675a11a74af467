"""Worker of one backend on one model: the stage's loop, and with vLLM also a bare `LLM.generate`."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.common.process import worker_main
from benchmarks.common.summary import alternating
from benchmarks.sampling.workload import CONTEXT, Load, dialogues, plan, prompt_tokens
from wrpo_engine.config import SampleParams
from wrpo_engine.contract.stage_config import StageConfig
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.process.environment import prepare_environment
from wrpo_engine.process.progress import make_progress
from wrpo_engine.sampling.backends import make_sampler
from wrpo_engine.sampling.requests import PartRequests
from wrpo_engine.sampling.sampler import SamplerSettings
from wrpo_engine.sampling.stage import sample_parts
from wrpo_engine.sampling.streaming import stream_parts
from wrpo_engine.stage import StageContext, StopRequest, make_context

BARE, STAGE, ANSWER = "bare", "stage", "answer"
"""A bare call of the engine, the sample stage, and the answer stage with the same requests."""


def measure(specification: Mapping[str, Any]) -> dict[str, Any]:
    prepare_environment(os.environ)
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    path, backend = Path(specification["model"]), specification["backend"]
    load = Load(**specification["load"])
    tokenizer = AutoTokenizer.from_pretrained(path)
    started = time.perf_counter()
    plans = plan(tokenizer, load)
    encoding_s = time.perf_counter() - started
    settings = SamplerSettings(
        temperature=0.8,
        top_p=0.95,
        max_tokens=load.max_tokens,
        stop_token_ids=(tokenizer.eos_token_id,),
        max_model_length=CONTEXT,
    )
    sampler = make_sampler(backend, ResolvedModel(path, "benchmark", None), tokenizer, settings)
    list(sampler.sample(plans[0].requests[:1]))
    sides = [BARE, STAGE, ANSWER] if backend == "vLLM" else [STAGE]
    # On a GPU rounding depends on the batch, so that a response may differ from one round to the next.
    is_exact = specification.get("is_exact", True)
    rounds = []
    texts: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="wrpo-bench-") as name:
        for number, side in enumerate(alternating(sides, specification["rounds"])):
            if backend == "vLLM":
                own: Any = sampler
                own._llm.reset_prefix_cache()  # noqa: SLF001 (every round reads all prompts again)
            ctx, params = context(Path(name), number, backend, load)
            # Both stages read the prompts before they load the model.
            conversations = dialogues(tokenizer, load) if side == ANSWER else []
            wall, cpu, before = time.perf_counter(), time.process_time(), os.getloadavg()[0]
            if side == BARE:
                answers = bare(sampler, plans)
            elif side == ANSWER:
                stream_parts(ctx, conversations, sampler.sample, backend=backend)
                answers = None
            else:
                sample_parts(ctx, params, plans, sampler)
                answers = None
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            found, tokens = read_back(ctx) if answers is None else answers
            if texts.setdefault(side, found) != found and is_exact:
                raise RuntimeError(f"{side} gave different responses in another round")
            rounds.append({"side": side, "seconds": wall, "cpu_seconds": cpu, "tokens": tokens, "load": before})
    if is_exact and any(found != texts[STAGE] for found in texts.values()):
        raise RuntimeError("a stage's responses differ from those of LLM.generate")
    sampler.close()
    return {
        "rounds": rounds,
        "prompts": load.prompts,
        "prompt_tokens": prompt_tokens(plans),
        "encoding_seconds": encoding_s,
    }


def bare(sampler: Any, plans: Sequence[PartRequests]) -> tuple[list[str], int]:
    """Generate all requests in one call, with nothing around it."""
    requests = [request for one in plans for request in one.requests]
    prompts = [{"prompt_token_ids": list(request.prompt_token_ids)} for request in requests]
    outputs = sampler._llm.generate(  # noqa: SLF001 (the same engine on both sides)
        prompts,
        [sampler._params(request) for request in requests],  # noqa: SLF001
        use_tqdm=False,
    )
    answers = [completion for output in outputs for completion in output.outputs]
    return [answer.text for answer in answers], sum(len(answer.token_ids) for answer in answers)


def context(root: Path, number: int, backend: str, load: Load) -> tuple[StageContext, SampleParams]:
    """Return the context of the stage's command: real storage, progress on stderr."""
    config = StageConfig.model_validate(
        {
            "experiment": "benchmarks/sampling",
            "output": {"stage": "sample/benchmark", "hash": f"{number:016x}"},
            "storage": {"kind": "volume"},
            "params": {
                "stage": "sample",
                "source": "benchmark",
                "model": {"name": "benchmark"},
                "backend": backend,
                "samples_per_prompt": load.samples,
                "max_tokens": load.max_tokens,
            },
        }
    )
    environ = {"WRPO_VOLUME_ROOT": str(root)}
    ctx = make_context(
        config,
        environ=environ,
        clock=lambda: datetime.now(UTC),
        progress=make_progress("sample", environ, time.monotonic),
        stop=StopRequest(),
    )
    assert isinstance(config.params, SampleParams)
    return ctx, config.params


def read_back(ctx: StageContext) -> tuple[list[str], int]:
    frame = pl.concat([pl.read_parquet(ctx.output.fetch(name)) for name in ctx.output.published("parts/")])
    return frame["text"].to_list(), int(frame["num_tokens"].sum())


if __name__ == "__main__":
    worker_main(measure)
    # Engines leave threads that are not needed any more.
    sys.stdout.flush()
    os._exit(0)
