"""What is wrong with a model directory is exit code 78 with file and names; no other exception leaves a loader."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import make_tokenizer, save_tiny_model, save_tiny_reward
from loading.damage import POINTER, copy_of, damage
from loading.loaders import sample, score, train
from safetensors.torch import load_file, save_file

from wrpo_engine.config import ExitCode
from wrpo_engine.errors import ConfigError, WrpoError
from wrpo_engine.loading.files import wrapper_prefix

FINAL = {ExitCode.BAD_DATA, ExitCode.NO_INPUT, ExitCode.CONFIG}
Load = Callable[[Path], None]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model in shards."""
    return sharded(save_tiny_model(tmp_path_factory.mktemp("causal") / "model"), "LlamaForCausalLM")


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharded(save_tiny_reward(tmp_path_factory.mktemp("reward") / "model"), "LlamaForSequenceClassification")


def sharded(directory: Path, kind: str) -> Path:
    import transformers

    model = getattr(transformers, kind).from_pretrained(directory)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="30KB")
    return directory


def change(directory: Path, function: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Save the weights again in one file, changed."""
    weights = {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for file in directory.glob("model*safetensors*"):
        file.unlink()
    changed = {name: tensor.clone() for name, tensor in function(weights).items()}
    save_file(changed, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def edit(directory: Path, name: str = "config.json", **settings: Any) -> Path:
    path = directory / name
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return directory


def message(load: Load, directory: Path) -> str:
    """Return the message of a refusal, without the directory's path."""
    with pytest.raises(ConfigError) as error:
        load(directory)
    assert error.value.exit_code == ExitCode.CONFIG
    return error.value.message.replace(str(directory), "DIR")


def refusal(load: Load, directory: Path, done: str) -> WrpoError | None:
    try:
        load(directory)
    except WrpoError as error:
        return error
    except BaseException as error:
        raise AssertionError(done) from error
    return None


@pytest.mark.parametrize("load", [sample, train, score])
@pytest.mark.parametrize("names", ["*config.json", "*.safetensors*", "tokenizer.json"])
def test_a_damaged_file_leaves_no_other_exception_than_a_final_one_of_ours(
    load: Load, names: str, causal: Path, reward: Path, tmp_path: Path
) -> None:
    draw = random.Random(f"{load.__name__} {names}")
    refused = 0
    for _ in range(25):
        directory = copy_of(reward if load is score else causal, tmp_path / "model")
        done = damage(directory, draw, names)
        error = refusal(load, directory, done)
        if error is not None:
            refused += 1
            assert error.exit_code in FINAL, done
            assert error.hint, done
    assert refused > 5


@pytest.mark.parametrize(
    ("load", "what"),
    [(sample, "its answers"), (train, "they"), (score, "its scores")],
    ids=["sample", "train", "score"],
)
def test_missing_tensors_are_named_by_every_stage(
    load: Load, what: str, causal: Path, reward: Path, tmp_path: Path
) -> None:
    directory = copy_of(reward if load is score else causal, tmp_path / "model")
    change(directory, lambda weights: {name: value for name, value in weights.items() if "layers.1" not in name})
    assert re.fullmatch(
        rf".* is 'DIR': its files hold no weights for model.layers.1.input_layernorm.weight, .* and 4 more, "
        rf"so {what} would be random",
        message(load, directory),
    )


@pytest.mark.parametrize("load", [sample, train, score])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."])
def test_names_that_a_wrapper_gave_are_refused_alike_by_every_stage(
    load: Load, prefix: str, causal: Path, reward: Path, tmp_path: Path
) -> None:
    directory = copy_of(reward if load is score else causal, tmp_path / "model")
    change(directory, lambda weights: {prefix + name: value for name, value in weights.items()})
    assert f"the names of all its 21 tensors begin with {prefix!r}" in message(load, directory)


def test_a_prefix_is_a_wrapper_s_only_if_all_names_have_it() -> None:
    assert wrapper_prefix(["module.a", "module.b"]) == "module."
    assert wrapper_prefix(["module.a", "b"]) is None
    assert wrapper_prefix(["module.a", "module._orig_mod.b"]) == "module."
    assert wrapper_prefix(["model.a", "lm_head.weight"]) is None
    assert wrapper_prefix([]) is None


@pytest.mark.parametrize("load", [sample, train])
def test_fewer_layers_in_the_config_than_in_the_files_are_refused(load: Load, causal: Path, tmp_path: Path) -> None:
    directory = edit(copy_of(causal, tmp_path / "model"), num_hidden_layers=1)
    assert "its files hold weights that the model of its config.json has no place for: model.layers.1." in message(
        load, directory
    )


@pytest.mark.parametrize("load", [sample, train])
def test_tensors_of_another_shape_are_named_with_both_shapes(load: Load, causal: Path, tmp_path: Path) -> None:
    directory = copy_of(causal, tmp_path / "model")
    change(directory, lambda weights: weights | {"model.norm.weight": torch.ones(31)})
    assert message(load, directory).endswith(
        "its files hold weights of other shapes than config.json describes: "
        "model.norm.weight is [31] in the files and [32] by config.json"
    )


@pytest.mark.parametrize("load", [sample, train])
def test_tensors_that_were_not_gathered_are_refused_as_such(load: Load, causal: Path, tmp_path: Path) -> None:
    directory = copy_of(causal, tmp_path / "model")
    change(directory, lambda weights: {name: torch.empty(0) for name in weights})
    assert "its files hold tensors of size 0: lm_head.weight, " in message(load, directory)


@pytest.mark.parametrize("load", [sample, train, score])
@pytest.mark.parametrize("name", ["model-00001-of-00003.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_called_that(load: Load, name: str, causal: Path, reward: Path, tmp_path: Path) -> None:
    directory = copy_of(reward if load is score else causal, tmp_path / "model")
    path = directory / name if (directory / name).exists() else next(directory.glob("model-00001*"))
    path.write_text(POINTER)
    assert f"{path.name} is a Git LFS pointer, not the content" in message(load, directory)


def test_a_cut_file_is_named(causal: Path, tmp_path: Path) -> None:
    directory = copy_of(causal, tmp_path / "model")
    path = next(directory.glob("model-00001*"))
    path.write_bytes(path.read_bytes()[:-7])
    assert f"{path.name} is damaged or cut: " in message(train, directory)


def test_an_index_that_names_absent_files_or_tensors_is_refused(causal: Path, tmp_path: Path) -> None:
    directory = copy_of(causal, tmp_path / "model")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    places = index["weight_map"]
    edit(directory, "model.safetensors.index.json", weight_map=places | {"lm_head.weight": "nosuch.safetensors"})
    assert "names files that are not there: nosuch.safetensors" in message(sample, directory)
    swapped = {"lm_head.weight": next(name for name in files if name != places["lm_head.weight"])}
    edit(directory, "model.safetensors.index.json", weight_map=places | swapped)
    assert "its files hold no weights for lm_head.weight (in model-0000" in message(sample, directory)
    edit(directory, "model.safetensors.index.json", weight_map=places | {"lm_head.weight": "../x.safetensors"})
    assert "weight_map of model.safetensors.index.json is not an object of tensor names" in message(sample, directory)


@pytest.mark.parametrize("load", [sample, train, score])
def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(
    load: Load, causal: Path, reward: Path, tmp_path: Path
) -> None:
    directory = copy_of(reward if load is score else causal, tmp_path / "model")
    change(
        directory,
        lambda weights: {
            name: tensor[:200] if name.endswith(("embed_tokens.weight", "lm_head.weight")) else tensor
            for name, tensor in weights.items()
        },
    )
    edit(directory, vocab_size=200)
    assert "its tokenizer has tokens that its embedding of 200 rows does not: " in message(load, directory)


@pytest.mark.parametrize("load", [sample, train])
def test_a_special_token_that_no_text_and_no_template_writes_may_be_beyond_the_embedding(
    load: Load, causal: Path, tmp_path: Path
) -> None:
    directory = copy_of(causal, tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    assert len(tokenizer) == json.loads((directory / "config.json").read_text())["vocab_size"] + 1
    tokenizer.save_pretrained(directory)
    load(directory)
    tokenizer.add_tokens(["plain"])
    tokenizer.save_pretrained(directory)
    assert "'plain' (260)" in message(load, directory)


QUANTISED: list[dict[str, Any]] = [
    {"quant_method": "gptq", "bits": 4, "group_size": 128},
    {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "fp8", "weight_block_size": [128, 128]},
    {"quant_method": "nosuch"},
]


@pytest.mark.parametrize("settings", QUANTISED, ids=lambda settings: settings["quant_method"])
def test_a_quantised_checkpoint_cannot_be_trained(settings: dict[str, Any], causal: Path, tmp_path: Path) -> None:
    directory = edit(copy_of(causal, tmp_path / "model"), quantization_config=settings)
    assert message(train, directory) == (
        "target.model is 'DIR': its weights are quantised, and quantised weights cannot be trained"
    )


@pytest.mark.parametrize("settings", QUANTISED[:3], ids=lambda settings: settings["quant_method"])
def test_a_quantised_checkpoint_that_transformers_cannot_sample_names_the_backend_that_can(
    settings: dict[str, Any], causal: Path, tmp_path: Path
) -> None:
    directory = edit(copy_of(causal, tmp_path / "model"), quantization_config=settings)
    with pytest.raises(ConfigError, match="cannot be loaded as a quantised causal language model") as error:
        sample(directory)
    assert error.value.hint is not None
    assert error.value.hint.startswith("Set sampling.backend: vLLM, which loads quantised weights")


@pytest.mark.parametrize("load", [sample, train, score])
def test_code_that_is_not_trusted_and_adapters_are_refused(
    load: Load, causal: Path, reward: Path, tmp_path: Path
) -> None:
    source = reward if load is score else causal
    own_code = edit(
        copy_of(source, tmp_path / "code"), model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"}
    )
    assert message(load, own_code).endswith(
        ".trustRemoteCode is 'false': DIR needs the Python code of its repository: its config.json has the model_type "
        "'own', which transformers does not know"
    )
    adapter = copy_of(source, tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    assert "holds an adapter (adapter_config.json), not a model by itself" in message(load, adapter)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('{"eos_token_id": [2],}', "generation_config.json cannot be read: "),
        ("[]", "generation_config.json holds a list where an object is needed"),
        ('{"eos_token_id": "end"}', "eos_token_id of generation_config.json is end, which is neither"),
        ('{"a":' * 100_000, "generation_config.json cannot be read: its values are nested too deep"),
    ],
)
@pytest.mark.parametrize("load", [sample, train])
def test_a_generation_config_that_cannot_be_used_is_refused_at_the_start(
    load: Load, content: str, fault: str, causal: Path, tmp_path: Path
) -> None:
    directory = copy_of(causal, tmp_path / "model")
    (directory / "generation_config.json").write_text(content)
    assert fault in message(load, directory)


def test_more_layers_than_anything_could_hold_are_not_built(causal: Path, tmp_path: Path) -> None:
    directory = edit(copy_of(causal, tmp_path / "model"), num_hidden_layers=10**9)
    assert "config.json has num_hidden_layers 1000000000, but its files hold 21 tensors" in message(sample, directory)


def test_a_base_model_is_no_reward_model(causal: Path) -> None:
    assert "its files hold no weights for score.weight, so its scores would be random" in message(score, causal)


def test_a_directory_that_stands_for_a_file_is_named(causal: Path, tmp_path: Path) -> None:
    directory = copy_of(causal, tmp_path / "model")
    (directory / "config.json").unlink()
    (directory / "config.json").mkdir()
    assert message(train, directory).endswith("config.json cannot be read: Is a directory")
    shutil.rmtree(directory)
