"""Cost of the sampling stage over a bare `LLM.generate`, and of both backends: `python -m benchmarks.sampling`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.machine import describe_machine
from benchmarks.common.process import run_worker
from benchmarks.common.results import RESULTS, Table, save_result
from benchmarks.common.summary import Summary
from benchmarks.sampling.worker import ANSWER, BARE, STAGE
from benchmarks.sampling.workload import Load, make_real_model, make_tiny_model

NAME = "sampling"
WANTED_OVERHEAD = 0.03


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__)
    parser.add_argument("--model", type=Path, help="default: SmolLM2-135M-Instruct, made once")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2, help="of vLLM; the Transformers backend runs once")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    models = RESULTS / "models"
    real = arguments.model or make_real_model(models / "smollm2-135m-instruct")
    tiny = make_tiny_model(models / "two-layers", real)
    console, machine = Console(), describe_machine()
    load = Load(arguments.prompts, arguments.samples, arguments.max_tokens)
    many = Load(64, arguments.samples, 32)
    cases = [
        (real.name, "vLLM", real, load, arguments.rounds),
        ("two random layers", "vLLM", tiny, many, arguments.rounds),
        (real.name, "Transformers", real, load, 1),
    ]
    figures: list[dict[str, Any]] = []
    for name, backend, model, what, rounds in cases:
        console.print(f"{name}, {backend}: {what.prompts} prompts x {what.samples}, at most {what.max_tokens} tokens")
        specification = {"model": str(model), "backend": backend, "load": asdict(what), "rounds": rounds}
        result = run_worker("benchmarks.sampling.worker", specification, threads=arguments.threads, timeout_s=3000)
        figures.append({"model": name, "backend": backend, "load": asdict(what), **result})
    measured = {"figures": figures, "model": real.name}
    for table in tables(measured):
        table.show(console)
    console.print(machine.line)
    save_result(NAME, machine, measured)
    return 0


def tables(result: Mapping[str, Any]) -> list[Table]:
    return [overhead_table(result["figures"]), backend_table(result["figures"], result["model"])]


def rates(figure: dict[str, Any], side: str, clock: str) -> Summary:
    """Return generated tokens per second of `clock` (seconds or cpu_seconds)."""
    return Summary.of([one["tokens"] / one[clock] for one in figure["rounds"] if one["side"] == side])


def overhead(figure: dict[str, Any], side: str, clock: str) -> float:
    """Return the share of the bare call's rate that a stage loses, from the medians."""
    return 1 - rates(figure, side, clock).median / rates(figure, BARE, clock).median


_STAGES = {STAGE: "sample", ANSWER: "answer"}
"""Side -> name of the stage."""


def overhead_table(figures: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for figure in figures:
        if figure["backend"] != "vLLM":
            continue
        measured = {one["side"] for one in figure["rounds"]}
        rows += [overhead_row(figure, side) for side in _STAGES if side in measured]
    return Table(
        title="The stages over a bare LLM.generate of the same requests, in one process",
        columns=[
            "model",
            "stage",
            "bare, tokens per CPU s",
            "stage, tokens per CPU s",
            "overhead (CPU)",
            "overhead (wall)",
            "us a response",
            "load average",
        ],
        rows=rows,
        notes=[
            f"Target: at most {WANTED_OVERHEAD:.0%}. All sides gave the same responses.",
            "CPU seconds are of the process, so that other processes count less. With a GPU the wall clock decides.",
        ],
    )


def overhead_row(figure: dict[str, Any], side: str) -> tuple[str, ...]:
    answers = figure["load"]["prompts"] * figure["load"]["samples"]
    spent = [
        Summary.of([one["cpu_seconds"] for one in figure["rounds"] if one["side"] == each]).median
        for each in (side, BARE)
    ]
    return (
        figure["model"],
        _STAGES[side],
        rates(figure, BARE, "cpu_seconds").text(digits=0),
        rates(figure, side, "cpu_seconds").text(digits=0),
        f"{overhead(figure, side, 'cpu_seconds'):+.1%}",
        f"{overhead(figure, side, 'seconds'):+.1%}",
        f"{(spent[0] - spent[1]) / answers * 1e6:.0f}",
        loads(figure),
    )


def backend_table(figures: Sequence[dict[str, Any]], model: str) -> Table:
    rows = []
    for figure in figures:
        if figure["model"] != model:
            continue
        rows.append(
            (
                figure["backend"],
                str(figure["rounds"][0]["tokens"]),
                rates(figure, STAGE, "seconds").text(digits=0),
                rates(figure, STAGE, "cpu_seconds").text(digits=0),
                f"{figure['prompts'] / figure['encoding_seconds']:.0f}",
                loads(figure),
            )
        )
    return Table(
        title=f"The stage with both backends, {model}",
        columns=["backend", "tokens", "tokens/s", "tokens per CPU s", "prompts encoded/s", "load average"],
        rows=rows,
    )


def loads(figure: dict[str, Any]) -> str:
    found = [one["load"] for one in figure["rounds"]]
    return f"{min(found):.1f}-{max(found):.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
