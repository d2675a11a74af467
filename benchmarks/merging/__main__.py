"""`python -m benchmarks.merging`: memory and speed of merging eleven models with tensors of an 8B model's shapes."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common.machine import describe_machine
from benchmarks.common.results import Table, save_result
from wrpo_engine.contract.merging import MergeFields
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.loading.files import ModelDirectory
from wrpo_engine.merging.building import Merge
from wrpo_engine.merging.parents import Parent
from wrpo_engine.merging.writing import Declared, write_tensors

NAME = "merging"
MODELS = 11
VOCABULARY, HIDDEN, INTERMEDIATE = 128_256, 4_096, 14_336
LIMIT_GIB = 8.0
METHODS = ("Linear", "TIES", "SCE")
_ROWS = 1024
_FILE = "model.safetensors"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merging", description=__doc__)
    parser.add_argument("--models", type=int, default=MODELS, help="parents, the base included")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--intermediate", type=int, default=INTERMEDIATE)
    parser.add_argument("--directory", type=Path, help="where the models are written; default: a temporary directory")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.method:
        print(merged(arguments.directory, arguments.models, arguments.method))
        return 0
    console, machine = Console(), describe_machine()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        shapes = {
            "model.embed_tokens.weight": (arguments.vocabulary, arguments.hidden),
            "model.layers.0.mlp.up_proj.weight": (arguments.intermediate, arguments.hidden),
            "model.norm.weight": (arguments.hidden,),
        }
        for model in range(arguments.models):
            _make(directory / f"model-{model}", shapes, seed=model)
        measured = {
            "models": arguments.models,
            "vocabulary": arguments.vocabulary,
            "hidden": arguments.hidden,
            "copy_bytes_per_s": _copy(directory, arguments.models),
            "figures": [_measure(directory, arguments.models, method) for method in METHODS],
        }
    for table in tables(measured):
        table.show(console)
    console.print(machine.line)
    save_result(NAME, machine, measured)
    return 0


def _make(directory: Path, shapes: Mapping[str, tuple[int, ...]], *, seed: int) -> None:
    """Write a model of random weights that differs from the first one by small deltas."""
    directory.mkdir()
    declared = {name: Declared(shape, torch.bfloat16) for name, shape in shapes.items()}

    def content(name: str) -> Any:
        base, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
        rows, *rest = shapes[name]
        for start in range(0, rows, _ROWS):
            shape = (min(_ROWS, rows - start), *rest)
            delta = 1e-3 * torch.randn(shape, generator=own) if seed else 0
            yield 0.02 * torch.randn(shape, generator=base) + delta

    write_tensors(directory / _FILE, declared, content)


def _copy(directory: Path, models: int) -> float:
    """Return bytes per second of reading all models and writing one."""
    started = time.perf_counter()
    count = 0
    for model in range(models):
        source = directory / f"model-{model}" / _FILE
        count += source.stat().st_size
        if model:
            with source.open("rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass
        else:
            shutil.copyfile(source, directory / "copy")
    return count / (time.perf_counter() - started)


def merged_separately(directory: Path, models: int, method: str) -> str:
    """Return what `merged` does in a separate process, whose peak of memory is that of the merge alone."""
    command = [sys.executable, "-m", "benchmarks.merging", "--directory", str(directory), "--models", str(models)]
    return subprocess.run([*command, "--method", method], check=True, capture_output=True, text=True).stdout


def _measure(directory: Path, models: int, method: str) -> dict[str, Any]:
    seconds, anonymous, resident = map(float, merged_separately(directory, models, method).split())
    size = sum((directory / f"model-{model}" / _FILE).stat().st_size for model in range(models))
    return {
        "method": method,
        "seconds": seconds,
        "bytes_per_s": size / seconds,
        "anonymous_gib": anonymous / 2**20,
        "resident_gib": resident / 2**20,
    }


def merged(directory: Path, count: int, method: str) -> str:
    """Merge in this process; return seconds, and the peaks of anonymous and of all resident memory in KiB."""
    parents = []
    for model in range(count):
        path = directory / f"model-{model}"
        facts = ModelDirectory(path, path.name, "model").tensor_facts()
        parents.append(Parent(ResolvedModel(path, path.name, None), facts, ()))
    weights = (1.0,) * (count - (method != "Linear"))
    fields = MergeFields.model_validate({"method": method, "density": 0.5, "select_top_k": 0.1})
    merge = Merge(fields=fields, parents=parents, weights_of=lambda _name: weights)
    peak = 0

    def poll(_bytes: int) -> None:
        nonlocal peak
        peak = max(peak, _status("RssAnon"))

    started = time.perf_counter()
    merge.write_shard(directory / "merged", _FILE, poll)
    return f"{time.perf_counter() - started} {peak} {_status('VmHWM')}"


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def tables(result: Mapping[str, Any]) -> list[Table]:
    rows = [
        (
            figure["method"],
            f"{figure['seconds']:.1f}",
            f"{figure['bytes_per_s'] / 1e6:.0f}",
            f"{result['copy_bytes_per_s'] / 1e6:.0f}",
            f"{figure['anonymous_gib']:.2f}",
            f"{figure['resident_gib']:.2f}",
        )
        for figure in result["figures"]
    ]
    return [
        Table(
            title=f"Merging {result['models']} models, embedding {result['vocabulary']:,} x {result['hidden']:,}",
            columns=["method", "s", "MB/s of parents", "plain read and write, MB/s", "anonymous GiB", "resident GiB"],
            rows=rows,
            notes=[
                "One layer's matrix and the embedding, the largest tensor: memory does not depend on the layers.",
                f"Target: {LIMIT_GIB:g} GiB. Resident memory includes mapped pages of the files, which can be dropped.",
            ],
        )
    ]


if __name__ == "__main__":
    raise SystemExit(main())
