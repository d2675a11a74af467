"""The merge stage: parents that fit each other become one model; others are refused by the first difference."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import save_tiny_model
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from wrpo_engine.contract.merging import MergeParams
from wrpo_engine.errors import DataError, Interrupted, WrpoError
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.merging import stage
from wrpo_engine.merging.methods import merged_tensor
from wrpo_engine.merging.operands import operands_of
from wrpo_engine.merging.parents import open_parent
from wrpo_engine.merging.recipe import Recipe
from wrpo_engine.merging.writing import Declared, shards_of, write_tensors
from wrpo_engine.stage import StopRequest

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three models of its architecture."""
    root = tmp_path_factory.mktemp("family")
    return [save_tiny_model(root / f"model-{seed}", seed=seed) for seed in range(4)]


@pytest.fixture
def copies(family: list[Path], tmp_path: Path) -> list[Path]:
    return [Path(shutil.copytree(path, tmp_path / path.name)) for path in family]


def weights(directory: Path) -> Weights:
    return load_file(directory / "model.safetensors")


def change(directory: Path, edit: Callable[[Weights], object]) -> None:
    found = {name: tensor.clone() for name, tensor in weights(directory).items()}
    edit(found)
    save_file(found, directory / "model.safetensors", metadata={"format": "pt"})


def params(method: str, paths: list[Path], **more: Any) -> dict[str, Any]:
    base, *models = [{"name": str(path)} for path in paths]
    return {"stage": "merge", "method": method, "base": base, "models": models, **more}


def run(make_ctx: Any, given: dict[str, Any], **more: Any) -> Any:
    ctx = make_ctx(given, stage="merge/m", **more)
    stage.run(ctx)
    return ctx.output.committed()


def test_a_merged_model_has_the_tensors_of_its_method_and_loads(make_ctx: Any, family: list[Path]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    artifact = run(make_ctx, params("SCE", family, select_top_k=0.5))
    model = artifact.directory / "model"
    merged, parents = weights(model), [weights(path) for path in family]
    assert merged.keys() == parents[0].keys()
    content = json.loads(artifact.file("merge.json").read_text())
    for name, tensor in merged.items():
        recipe = Recipe(method="SCE", select_top_k=0.5)
        whole = merged_tensor(operands_of([parent[name] for parent in parents]), recipe)
        torch.testing.assert_close(tensor, whole)
        assert sum(content["weights"][name]) == pytest.approx(1)
    assert [(one["name"], one["part"]) for one in content["parents"]] == [
        (str(path), part) for path, part in zip(family, ["base", "model", "model", "model"], strict=True)
    ]
    card = artifact.file("README.md").read_text()
    assert all(one["digest"] in card and len(one["digest"]) == 64 for one in content["parents"])
    loaded = AutoModelForCausalLM.from_pretrained(model)
    assert torch.equal(loaded.model.norm.weight, merged["model.norm.weight"])
    assert AutoTokenizer.from_pretrained(model).chat_template


@pytest.mark.parametrize("method", ["Linear", "TaskArithmetic", "TIES", "DARE-Linear", "DARE-TIES", "ModelStock"])
def test_every_method_merges_models_to_themselves(make_ctx: Any, family: list[Path], method: str) -> None:
    artifact = run(make_ctx, params(method, [family[0]] * 3, density=0.5))
    for name, tensor in weights(artifact.directory / "model").items():
        torch.testing.assert_close(tensor, weights(family[0])[name])


def test_linear_reads_no_weights_of_its_base(make_ctx: Any, family: list[Path]) -> None:
    artifact = run(make_ctx, params("Linear", family[:3], weight=[3.0, 1.0]))
    one, other = weights(family[1]), weights(family[2])
    for name, tensor in weights(artifact.directory / "model").items():
        torch.testing.assert_close(tensor, 0.75 * one[name] + 0.25 * other[name])


def test_slerp_takes_base_and_model_or_two_models(make_ctx: Any, family: list[Path]) -> None:
    given = params("SLERP", family[:2], position=1.0)
    merged = weights(run(make_ctx, given).directory / "model")
    for name, tensor in weights(family[1]).items():
        torch.testing.assert_close(merged[name], tensor)
    two = {**given, "models": [given["base"], *given["models"]]}
    assert MergeParams.model_validate({**two, "base": None}).models
    with pytest.raises(ValidationError, match="method SLERP takes exactly two models, base included; got 3"):
        MergeParams.model_validate(two)


def test_weights_are_rounded_to_the_format_that_is_asked_for(make_ctx: Any, family: list[Path]) -> None:
    artifact = run(make_ctx, params("TIES", family, density=0.5, dtype="bfloat16"))
    merged = weights(artifact.directory / "model")
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    assert json.loads(artifact.file("model/config.json").read_text())["dtype"] == "bfloat16"
    recipe = Recipe(method="TIES", density=0.5, weights=(1.0,) * 3, normalize=True)
    name = "model.layers.0.mlp.up_proj.weight"
    whole = merged_tensor(operands_of([weights(path)[name] for path in family]), recipe)
    assert torch.equal(merged[name], whole.bfloat16())


def test_tied_weights_are_merged_once(make_ctx: Any, copies: list[Path]) -> None:
    for path in copies[:3]:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
        change(path, lambda found: found.pop("lm_head.weight", None))
    # One parent holds the tied weight a second time.
    change(copies[1], lambda found: found.update({"lm_head.weight": found["model.embed_tokens.weight"].clone()}))
    artifact = run(make_ctx, params("TaskArithmetic", copies[:3]))
    assert "lm_head.weight" not in weights(artifact.directory / "model")


UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
FAULTS: dict[str, tuple[Callable[[Weights], object], str]] = {
    "missing": (lambda found: found.pop(NORM), f"tensor {NORM} is missing, there "),
    "more": (
        lambda found: found.update({"model.more.weight": torch.zeros(3)}),
        "tensor model.more.weight has the shape [3], there missing"),
    "shape": (lambda found: found.update({UP: found[UP][:-1].clone()}), f"tensor {UP} has the shape "),
    "number format": (
        lambda found: found.update({NORM: found[NORM].int()}), f"tensor {NORM} has the number format I32, there F32"),
    "NaN": (lambda found: found[NORM].__setitem__(3, float("nan")), f"tensor {NORM} of "),
    "infinite": (lambda found: found[NORM].__setitem__(3, float("inf")), "holds infinite numbers"),
}  # fmt: skip


@pytest.mark.parametrize("method", ["SCE", "Linear", "ModelStock"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_parent_that_does_not_fit_is_refused_by_its_first_difference(
    make_ctx: Any, copies: list[Path], fault: str, method: str
) -> None:
    edit, message = FAULTS[fault]
    change(copies[2], edit)
    with pytest.raises(DataError) as caught:
        run(make_ctx, params(method, copies[:3]))
    assert message in caught.value.message
    assert str(copies[2]) in caught.value.message
    assert caught.value.field == "evaluation.systems.merge.models[1]"
    assert caught.value.hint


SETTINGS: dict[str, tuple[str, Any]] = {
    "heads": ("num_attention_heads", 1),
    "vocabulary": ("vocab_size", 300),
    "kind": ("model_type", "mistral"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_parents_of_unlike_architecture_are_refused(make_ctx: Any, copies: list[Path], setting: str) -> None:
    key, value = SETTINGS[setting]
    config = json.loads((copies[2] / "config.json").read_text())
    (copies[2] / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(WrpoError, match=rf"{copies[2]}.*{key} of config.json is {value!r}"):
        run(make_ctx, params("TIES", copies[:3]))


def test_parents_whose_tokens_mean_something_else_are_refused(make_ctx: Any, copies: list[Path]) -> None:
    path = copies[2] / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"token \d+ is 'b', there 'a'"):
        run(make_ctx, params("TIES", copies[:3]))


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "density 0": ({"density": 0}, "Input should be greater than 0"),
    "top k 0": ({"select_top_k": 0}, "Input should be greater than 0"),
    "no base": ({"base": None}, "method TIES merges deltas, so it needs base"),
    "weights": ({"weight": [1, 2]}, "weight has 2 values for 3 models; give one, or one for each"),
    "stock": ({"method": "ModelStock", "models": [{"name": "/a"}]}, "needs at least two models besides base; got 1"),
    "sum 0": (
        {"method": "Linear", "weight": [1, -1, 0]},
        "weight has the sum 0, by which method Linear divides; set normalize: false"),
}  # fmt: skip


@pytest.mark.parametrize("case", INVALID)
def test_parameters_that_cannot_be_merged_by_are_refused(case: str) -> None:
    changes, message = INVALID[case]
    with pytest.raises(ValidationError, match=message):
        MergeParams.model_validate({**params("TIES", [Path("/base"), *[Path("/model")] * 3]), **changes})


class StopAfter(StopRequest):
    def __init__(self, looks: int) -> None:
        super().__init__()
        self._left = looks

    def raise_if_requested(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Interrupted


def test_a_merge_that_is_stopped_again_and_again_gives_the_same_files(
    make_ctx: Any, family: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("wrpo_engine.merging.building.shards_of", lambda tensors: shards_of(tensors, "40KB"))
    given = params("SCE", family, select_top_k=0.3)
    whole = run(make_ctx, given, root=tmp_path / "whole")
    assert len([name for name in whole.files() if name.endswith(".safetensors")]) > 3
    for _attempt in range(50):
        try:
            parts = run(make_ctx, given, stop=StopAfter(12))
            break
        except Interrupted:
            continue
    assert {entry.name: entry.sha256 for entry in parts.manifest.files} == {
        entry.name: entry.sha256 for entry in whole.manifest.files
    }
    assert not parts.files("work/")
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(parts.directory / "model")


def test_a_written_file_is_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(7, 3).bfloat16(), "a": torch.arange(5), "c": torch.tensor(2.5), "d": torch.zeros(0, 4)}
    order = {name: Declared(tuple(tensors[name].shape), tensors[name].dtype) for name in ("a", "c", "b", "d")}
    write_tensors(tmp_path / "x.safetensors", order, lambda name: tensors[name].reshape(-1).split(2))
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "x.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_a_file_that_is_cut_while_it_is_read_is_named(copies: list[Path]) -> None:
    parent = open_parent(ResolvedModel(copies[0], "org/base", None))
    path = copies[0] / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)

    def read_all() -> None:
        for name, fact in parent.facts.items():
            parent.read(name, slice(0, fact.shape[0]))

    with pytest.raises(WrpoError, match=r"org/base.*model\.safetensors was cut while it was read"):
        read_all()
