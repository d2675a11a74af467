"""The checkpoint store: background writing, completion, retention, lookup."""

from __future__ import annotations

import logging
import math
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from engine_support import EXPERIMENT_HASH, NOON
from support.patience import LIMIT_S
from torch import Tensor

from wrpo_engine.artifacts.volume import VolumeWriter
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import DataError, MissingInputError, TemporaryError
from wrpo_engine.training.backends.base import Backend, Item, TensorKind
from wrpo_engine.training.checkpoint.format import Checkpoint, write_shard
from wrpo_engine.training.checkpoint.manager import CheckpointStore
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.export import export


class FakeBackend:
    """Two parameters whose values depend on the step."""

    def __init__(self) -> None:
        self.step = 0
        self.calls: list[Sequence[Sequence[Item]]] = []
        self.given: list[Mapping[Item, Tensor]] = []

    def parameter_names(self) -> list[str]:
        return ["embed.weight", "head.weight"]

    def host_tensor(self, _item: Item) -> Tensor:
        return torch.empty(2, 3)

    def gather(self, shares: Sequence[Sequence[Item]], host: Mapping[Item, Tensor]) -> None:
        self.calls.append([list(share) for share in shares])
        self.given.append(dict(host))
        for (name, kind), tensor in host.items():
            offset = 100 * self.parameter_names().index(name) + 10 * list(TensorKind).index(kind)
            tensor.fill_(float(offset + self.step))


class SlowWriter(VolumeWriter):
    """Shards wait until they are let through; markers do not."""

    gate: threading.Event | None = None
    error: Exception | None = None

    def publish(
        self, name: str, write: Callable[[Path], object], *, replace: bool = False, sha256: str | None = None
    ) -> Path:
        if self.gate is not None and name.endswith(".safetensors"):
            assert self.gate.wait(LIMIT_S)
        if self.error is not None:
            raise self.error
        return super().publish(name, write, replace=replace, sha256=sha256)


class CachedWriter(VolumeWriter):
    """As on S3: the store is elsewhere, `directory` is a cache, and another pod's cache is empty."""

    bucket: Path

    def publish(
        self, name: str, write: Callable[[Path], object], *, replace: bool = False, sha256: str | None = None
    ) -> Path:
        path = super().publish(name, write, replace=replace, sha256=sha256)
        stored = self.bucket / name
        stored.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, stored)
        return path

    def published(self, prefix: str = "") -> list[str]:
        names = (path.relative_to(self.bucket).as_posix() for path in self.bucket.rglob("*") if path.is_file())
        return sorted(name for name in names if name.startswith(prefix))

    def fetch(self, name: str) -> Path:
        if not (self.bucket / name).is_file():
            raise MissingInputError(f"no {name}")
        local = self.directory / name
        local.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.bucket / name, local)
        return local


def make(kind: type[VolumeWriter], directory: Path) -> Any:
    return kind(ArtifactRef(stage="train", hash=EXPERIMENT_HASH), directory, {}, {}, lambda: NOON)


@pytest.fixture
def writer(tmp_path: Path) -> SlowWriter:
    made: SlowWriter = make(SlowWriter, tmp_path / "run")
    return made


@pytest.fixture
def backend() -> Any:
    return FakeBackend()


def save(store: CheckpointStore, backend: Any, *steps: int) -> None:
    for step in steps:
        backend.step = step
        store.save(step, backend)
    store.finish()


def steps_of(writer: VolumeWriter) -> list[str]:
    return sorted({name.split("/")[1] for name in writer.published("checkpoints/step-")})


def test_training_continues_while_a_checkpoint_is_written(writer: SlowWriter, backend: Any) -> None:
    writer.gate = threading.Event()
    store = CheckpointStore(writer, Group())
    backend.step = 5
    store.save(5, backend)
    backend.step = 6  # the next step changes the weights; the copy keeps them
    store.poll()
    assert store.latest() is None
    writer.gate.set()
    store.finish()
    found = store.latest()
    assert found is not None
    assert found.step == 5
    assert found.read("head.weight", TensorKind.EXP_AVG)[0, 0].item() == 115.0


def test_an_error_of_the_writing_thread_is_raised_at_the_next_boundary(writer: SlowWriter, backend: Any) -> None:
    writer.error = OSError(28, "No space left on device")
    store = CheckpointStore(writer, Group())
    store.save(1, backend)
    with pytest.raises(OSError, match="No space left"):
        store.finish()
    writer.error = None
    save(store, backend, 2)
    assert steps_of(writer) == ["step-00000002"]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_tensor_is_in_the_share_of_one_rank_and_one_call_gathers_all(writer: SlowWriter, world_size: int) -> None:
    everything = [Item(name, kind) for name in FakeBackend().parameter_names() for kind in TensorKind]
    shares = [everything[rank::world_size] for rank in range(world_size)]
    for rank in range(world_size):
        backend = FakeBackend()
        own = CheckpointStore(writer, Group(rank, world_size))._own_tensors(cast("Backend", backend))
        assert list(own) == [f"{kind.value}/{name}" for name, kind in shares[rank]]
        assert backend.calls == [shares]


def test_the_memory_of_a_written_checkpoint_is_used_for_the_next_one_and_freed_at_the_end(
    writer: SlowWriter, backend: Any
) -> None:
    store = CheckpointStore(writer, Group())
    save(store, backend, 1, 2)
    first, second = backend.given
    assert all(second[item] is tensor for item, tensor in first.items())
    store.close()
    save(store, backend, 3)
    assert not any(backend.given[2][item] is tensor for item, tensor in first.items())


def test_exported_weights_are_copied_by_the_first_rank_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_BATCH", 6)
    first, second = FakeBackend(), FakeBackend()
    weights = export.gather_weights(cast("Backend", first), Group(0, 2), "bfloat16")
    assert weights is not None
    assert list(weights) == first.parameter_names()
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert export.gather_weights(cast("Backend", second), Group(1, 2), "bfloat16") is None
    assert first.calls == second.calls == [[[Item(name, TensorKind.WEIGHT)], []] for name in first.parameter_names()]
    assert second.given == [{}, {}]


def test_an_error_of_another_rank_names_it(writer: SlowWriter, backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(writer, Group())
    store.save(1, backend)
    monkeypatch.setattr(Group, "gather", lambda _self, value: [value, (True, "OSError: disk gone")])
    with pytest.raises(TemporaryError, match="rank 1 could not write its shard of the checkpoint after step 1: OSErr"):
        store.finish()


@pytest.mark.parametrize(("keep", "kept"), [(1, ["step-00000004"]), (3, [f"step-{step:08d}" for step in (2, 3, 4)])])
def test_the_last_ones_are_kept(keep: int, kept: list[str], writer: SlowWriter, backend: Any) -> None:
    save(CheckpointStore(writer, Group(), keep), backend, 1, 2, 3, 4)
    assert steps_of(writer) == kept


def test_the_best_one_is_kept_in_addition_to_the_last_until_another_is_better(writer: SlowWriter, backend: Any) -> None:
    store = CheckpointStore(writer, Group(), 1)
    backend.step = 1
    store.save(1, backend)
    store.mark_best(1)  # while it is still being written
    save(store, backend, 2, 3)
    assert steps_of(writer) == ["step-00000001", "step-00000003"]
    best = store.best()
    assert best is not None
    assert best.read("embed.weight", TensorKind.WEIGHT)[0, 0].item() == 1.0
    store.mark_best(3)  # after it is complete
    save(store, backend, 4)
    assert steps_of(writer) == ["step-00000003", "step-00000004"]
    with pytest.raises(ValueError, match="no checkpoint of step 9"):
        store.mark_best(9)


def test_saving_a_step_twice_writes_it_once(writer: SlowWriter, backend: Any) -> None:
    store = CheckpointStore(writer, Group())
    backend.step = 1
    store.save(1, backend)
    backend.step = 2
    store.save(1, backend)
    store.finish()
    found = store.latest()
    assert found is not None
    assert found.read("embed.weight", TensorKind.WEIGHT)[0, 0].item() == 1.0


def test_what_a_kill_left_unfinished_is_said_and_removed(
    writer: SlowWriter, backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(writer, Group())
    save(store, backend, 1)
    writer.publish("checkpoints/step-00000002/rank-00000.safetensors", lambda path: path.write_bytes(b"half"))
    with caplog.at_level(logging.WARNING):
        found = CheckpointStore(writer, Group()).latest()
    assert found is not None
    assert found.step == 1
    assert "checkpoints/step-00000002 is incomplete" in caplog.text
    save(store, backend, 3)
    assert steps_of(writer) == ["step-00000001", "step-00000003"]


def test_a_damaged_one_is_named_skipped_and_rewritten(
    writer: SlowWriter, backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(writer, Group(), 3)
    save(store, backend, 1, 2)
    shard = writer.directory / "checkpoints/step-00000002/rank-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with caplog.at_level(logging.WARNING):
        found = store.latest()
    assert found is not None
    assert found.step == 1
    assert "step-00000002 is damaged: rank-00000.safetensors does not match its sha256" in caplog.text
    save(store, backend, 2)
    again = store.latest()
    assert again is not None
    assert again.step == 2


def test_another_pod_with_an_empty_cache_finds_it(tmp_path: Path, backend: Any) -> None:
    bucket = tmp_path / "bucket"
    first, second = make(CachedWriter, tmp_path / "pod-1"), make(CachedWriter, tmp_path / "pod-2")
    first.bucket = second.bucket = bucket
    backend.step = 7
    store = CheckpointStore(first, Group())
    store.save(7, backend, {"evaluations": [1, 2]})
    store.finish()
    found = CheckpointStore(second, Group()).latest()
    assert found is not None
    assert (found.step, found.world_size, found.state) == (7, 1, {"evaluations": [1, 2]})
    assert found.read("head.weight", TensorKind.WEIGHT)[1, 2].item() == 107.0


def test_a_missing_parameter_is_an_error_that_names_it(writer: SlowWriter, backend: Any) -> None:
    store = CheckpointStore(writer, Group())
    save(store, backend, 1)
    found = store.latest()
    assert found is not None
    with pytest.raises(DataError, match=r"contains no weight of parameter other\.weight") as caught:
        found.read("other.weight", TensorKind.WEIGHT)
    assert caught.value.code == "CheckpointIncompatible"


@pytest.mark.parametrize("shape", [(5, 7), (12,), (3, 2, 4), ()], ids=str)
def test_any_part_of_a_tensor_is_read_alone(writer: SlowWriter, shape: tuple[int, ...]) -> None:
    tensor = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    shard = write_shard(writer, 1, 0, {"weight/layer": tensor})
    checkpoint = Checkpoint(writer, 1, 1, (shard,))
    flat = tensor.reshape(-1)
    for start, stop in combinations_with_replacement(range(tensor.numel() + 1), 2):
        assert checkpoint.read("layer", TensorKind.WEIGHT, (start, stop)).tolist() == flat[start:stop].tolist()


def test_nothing_is_left_after_the_run(writer: SlowWriter, backend: Any) -> None:
    store = CheckpointStore(writer, Group())
    save(store, backend, 1, 2)
    store.remove()
    assert writer.published("checkpoints/") == []
    assert store.latest() is None
