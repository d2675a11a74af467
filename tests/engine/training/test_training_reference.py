"""The reference: cached parts, the content of their key, and a second model in memory."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from wrpo_engine.hub.model_digest import model_digest
from wrpo_engine.training.backends.single_process import SingleProcessBackend
from wrpo_engine.training.batch.collate import collate
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.models.model import LogpModel, load_causal_lm
from wrpo_engine.training.reference.log_probs import InMemoryReference, reference_fingerprint

ROWS = [TokenRow("a", (1, 2), ((3,), (4, 5))), TokenRow("b", (6,), ((7,), (8,)))]


@pytest.fixture
def model_dir(tmp_path: Path, training_model_dir: Path) -> Path:
    return Path(shutil.copytree(training_model_dir, tmp_path / "model"))


def key(directory: Path, rows: list[TokenRow] | None = None, precision: str = "float32", layout: str = "padded") -> str:
    return reference_fingerprint(model_digest(directory), rows or ROWS, precision, layout)


def test_the_key_is_that_of_the_same_numbers(model_dir: Path, training_model_dir: Path) -> None:
    assert key(model_dir) == key(training_model_dir)
    (model_dir / "README.md").write_text("says nothing about numbers")
    (model_dir / "tokenizer_config.json").write_text("{}")
    assert key(model_dir) == key(training_model_dir)


def _change_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


def _change_config(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))


FILES = {
    "weights": _change_weights,
    "the model's configuration": _change_config,
    "its own code": lambda directory: (directory / "modeling.py").write_text("SCALE = 2"),
}


@pytest.mark.parametrize("change", FILES.values(), ids=FILES.keys())
def test_the_key_covers_the_models_files(change: Any, model_dir: Path, training_model_dir: Path) -> None:
    change(model_dir)
    assert key(model_dir) != key(training_model_dir)


def test_the_key_covers_tokens_dtype_layout_and_libraries(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        key(model_dir),
        key(model_dir, [replace(ROWS[0], responses=((3,), (4, 6))), ROWS[1]]),
        key(model_dir, ROWS[::-1]),
        key(model_dir, precision="bfloat16"),
        key(model_dir, layout="packed"),
    ]
    monkeypatch.setattr(torch, "__version__", "9.9")
    keys.append(key(model_dir))
    assert len(set(keys)) == len(keys)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "altered": lambda path: path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\x80\x3f"),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_part_is_named_and_computed_again(damage: Any, local_run: Any, caplog: Any) -> None:
    run = local_run()
    whole = run.reference(run.backend())
    part = min((run.directory / "reference").glob("part-*"))
    damage(part)
    with caplog.at_level(logging.WARNING):
        again = run.reference(run.backend())
    assert f"{part.name} is damaged" in caplog.text
    assert sorted(again.values) == sorted(whole.values)
    assert all(torch.equal(again.values[row], whole.values[row]) for row in whole.values)


@pytest.mark.parametrize("objective", ["WRPO-DPO", "WRPO-IPO"])
def test_a_model_in_memory_trains_the_same_weights_as_the_cached_table(objective: str, local_run: Any) -> None:
    """Bit for bit: the frozen model computes the same micro-batches as the pass before training did."""
    cached, in_memory = (local_run(name, objective=objective) for name in ("cached", "memory"))
    cached.run()
    policy, frozen = (
        LogpModel(
            load_causal_lm(
                in_memory.model_dir, precision="float32", gradient_checkpointing=False, trust_remote_code=False
            )
        )
        for _ in range(2)
    )
    in_memory.backend = lambda: SingleProcessBackend(policy, in_memory.params(), frozen)
    in_memory.reference = InMemoryReference
    in_memory.run()
    assert in_memory.metrics()[0]["margin"] == 0.0
    expected = cached.weights()
    for name, tensor in in_memory.weights().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
    assert [row["margin"] for row in in_memory.metrics()] == pytest.approx([row["margin"] for row in cached.metrics()])


def test_the_frozen_model_stays_as_it_was_loaded(local_run: Any) -> None:
    run = local_run()
    batch = collate(run.token_rows()[:3])
    frozen = LogpModel(
        load_causal_lm(run.model_dir, precision="float32", gradient_checkpointing=False, trust_remote_code=False)
    )
    policy = run.backend()._model
    backend = SingleProcessBackend(policy, run.params(), frozen)
    before = backend.reference_sequence_logps(batch)
    assert torch.equal(before, backend.frozen_sequence_logps(batch))
    backend.backward(backend.sequence_logps(batch).sum(), is_last=True)
    backend.optimizer_step(1e-2)
    assert torch.equal(backend.reference_sequence_logps(batch), before)
    assert not torch.equal(backend.frozen_sequence_logps(batch), before)
