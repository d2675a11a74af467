"""What the inspect stage refuses before an accelerator is requested: one final error with field, value and remedy."""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from inspecting_support import INDEX, files_of, inspect, refusal, shard, use
from loading.damage import POINTER, copy_of, damage
from support.hub_server import COMMIT, Hub, HubFault, hub_server, use_hub

from wrpo_engine.contract.data import ModelUse
from wrpo_engine.errors import WrpoError
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.inspecting.checks import inspect_model
from wrpo_engine.inspecting.code import VLLM_KINDS
from wrpo_engine.inspecting.outline import write_outline

TRAIN, SAMPLE, SCORE = use("train", "target"), use("sample"), use("score", "reward")
TOKENS = {"owner": True, "visitor": False}


@pytest.fixture
def hub(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server(Hub("org/tiny", files_of(tiny_model_dir))) as running:
        use_hub(monkeypatch, running)
        yield running


def edit(directory: Path, name: str = "config.json", **values: Any) -> None:
    content = json.loads((directory / name).read_text())
    changed = {key: value for key, value in (content | values).items() if value is not ...}
    (directory / name).write_text(json.dumps(changed))


REFUSALS: dict[str, tuple[Callable[[Path], object], dict[str, Any], tuple[str, str, str]]] = {
    "code of the repository, InternLM2": (
        lambda model: edit(model, model_type="internlm2", auto_map={"AutoConfig": "configuration_internlm2.X"}),
        SAMPLE,
        ("ModelNeedsCode",
         ("sources[a].trustRemoteCode is 'false': MODEL needs the Python code of its repository: its config.json has "
          "the model_type 'internlm2', which transformers does not know"),
         "Read that code, then set sources[a].trustRemoteCode: true; or use another model.")),
    "code of the tokenizer": (
        lambda model: edit(model, "tokenizer_config.json", tokenizer_class="OwnTokenizer",
                           auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]}),
        SAMPLE,
        ("ModelNeedsCode",
         ("sources[a].trustRemoteCode is 'false': MODEL needs the Python code of its repository: its tokenizer is part "
          "of that code"),
         "then set sources[a].trustRemoteCode: true")),
    "an unknown kind without code": (
        lambda model: edit(model, model_type="nosuch"),
        TRAIN,
        ("ModelInvalid", "target.model is 'MODEL': transformers cannot read its config.json: ",
         "Use a model that this version of transformers knows")),
    "weights in another format": (
        lambda model: (model / "model.safetensors").rename(model / "pytorch_model.bin"),
        SAMPLE,
        ("ModelNotSafetensors", "sources[a].model is 'MODEL': MODEL holds no *.safetensors (found: pytorch_model.bin)",
         "Convert the weights to safetensors")),
    "no chat template": (
        lambda model: (model / "chat_template.jinja").unlink(),
        TRAIN,
        ("MissingChatTemplate", "target.chatTemplate is '<unset>': the tokenizer of MODEL has no chat template",
         "Set target.chatTemplate, or use an instruction-tuned model.")),
    "a chat template that fails": (
        lambda model: (model / "chat_template.jinja").write_text("{{ messages | nosuch }}"),
        SAMPLE,
        ("ChatTemplateFailed", "sources[a].chatTemplate is \"<the model's>\": ", "Set sources[a].chatTemplate")),
    "no tokenizer": (
        lambda model: [path.unlink() for path in model.glob("tokenizer*")],
        TRAIN,
        ("TokenizerInvalid", "target is 'MODEL': its tokenizer cannot be loaded: ",
         "Use a model directory with tokenizer.json")),
    "a config without a needed field": (
        lambda model: edit(model, hidden_size=...),
        SAMPLE,
        ("ModelSizeUnknown", "hidden_size",
         "Correct config.json, or set the accelerators of the stages that use the model.")),
    "a field of another type": (
        lambda model: edit(model, num_hidden_layers=[2]),
        SAMPLE,
        ("ModelSizeUnknown", "num_hidden_layers is [2]", "Correct config.json")),
    "quantised weights to be trained": (
        lambda model: edit(model, quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128}),
        TRAIN,
        ("ModelInvalid",
         "target.model is 'MODEL': its weights are quantised, and quantised weights cannot be trained",
         "Use the model before quantisation.")),
    "a chat model as reward": (
        lambda _model: None,
        SCORE,
        ("RewardModelInvalid", "reward.model is 'MODEL': its files hold no weights for score.weight",
         "Use a trained reward model")),
    "an adapter": (
        lambda model: (model / "adapter_config.json").write_text("{}"),
        SAMPLE,
        ("ModelInvalid", "MODEL holds an adapter (adapter_config.json), not a model by itself", "Merge the adapter")),
    "a pointer of Git LFS": (
        lambda model: (model / "model.safetensors").write_text(POINTER),
        SAMPLE,
        ("ModelDamaged", "model.safetensors is a Git LFS pointer, not the content", "Run `git lfs pull`")),
    "a cut file": (
        lambda model: (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-8]),
        SAMPLE,
        ("ModelDamaged", "model.safetensors is damaged or cut", "Copy or download the file again.")),
    "no config": (
        lambda model: (model / "config.json").unlink(),
        SAMPLE,
        ("ModelInvalid", "MODEL holds no config.json", "Name the directory that holds config.json")),
    "no model": (
        shutil.rmtree,
        SAMPLE,
        ("ModelNotFound", "sources[a].model is 'MODEL': there is no directory MODEL", "Check the path")),
}  # fmt: skip


@pytest.mark.parametrize(("change", "used", "expected"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_model_that_its_stage_could_not_load_is_refused(
    change: Callable[[Path], object], used: dict[str, Any], expected: tuple[str, str, str], tiny_model_dir: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    model = copy_of(tiny_model_dir, tmp_path / "model")
    change(model)
    code, message, hint = refusal(tmp_path, str(model), [used])
    assert code == expected[0]
    assert expected[1] in message.replace(str(model), "MODEL")
    assert expected[2] in hint


ALLOWED: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "a chat template of the experiment": (
        lambda model: (model / "chat_template.jinja").rename(model / "other"),
        TRAIN | {"chat_template": "TEMPLATE"}),
    "quantised weights to be sampled by vLLM": (
        lambda model: edit(model, quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128}), SAMPLE),
    "code that a known kind does not need": (
        lambda model: edit(model, auto_map={"AutoConfig": "configuration_own.X"}), SAMPLE),
    "code of a kind that vLLM has": (
        lambda model: edit(model, model_type="chatglm", auto_map={"AutoConfig": "configuration_chatglm.X"}), SAMPLE),
}  # fmt: skip


@pytest.mark.parametrize(("change", "used"), ALLOWED.values(), ids=ALLOWED.keys())
def test_a_model_that_its_stage_can_load_is_accepted(
    change: Callable[[Path], object], used: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = copy_of(tiny_model_dir, tmp_path / "model")
    if "chat_template" in used:
        used = used | {"chat_template": (model / "chat_template.jinja").read_text()}
    change(model)
    code, message = inspect(tmp_path, str(model), [used])
    assert (code, message.error) == (0, None)


@pytest.mark.parametrize("stated", [1, 10**15, "140672", float("nan"), -140672, True, [140672]])
def test_an_index_that_misstates_its_size_is_refused(stated: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    model = shard(tiny_model_dir, tmp_path / "model", total_size=stated)
    code, message, hint = refusal(tmp_path, str(model), [SAMPLE])
    assert code == "ModelDamaged"
    assert f"metadata.total_size of {INDEX} is {str(stated)[:80]}, but the headers of its files describe " in message
    assert hint.startswith("Copy or download the index and all files of one version of the model")


@pytest.mark.parametrize("stated", [None, ...])
def test_an_index_may_state_no_size(stated: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    assert inspect(tmp_path, str(shard(tiny_model_dir, tmp_path / "model", total_size=stated)))[0] == 0


def test_an_index_that_names_an_absent_file_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = shard(tiny_model_dir, tmp_path / "model")
    (model / "model-00002-of-00002.safetensors").unlink()
    code, message, _ = refusal(tmp_path, str(model))
    assert code == "WeightsMissing"
    assert f"{INDEX} names files that are not there: model-00002-of-00002.safetensors" in message


ACCESS: dict[str, tuple[dict[str, str], str, str, str, str]] = {
    "unknown": ({}, "org/nobody", "ModelNotFound",
                "sources[a].model is 'org/nobody': there is no such model on the hub, or it is private",
                "Check the spelling"),
    "no hub id": ({}, "a/b/c", "ModelNotFound", "sources[a].model is 'a/b/c': there is no such model on the hub",
                  "Check the spelling"),
    "gated, no token": ({}, "org/tiny", "ModelForbidden",
                        ("sources[a].model is 'org/tiny': access to this model is granted by its authors, and this pod "
                         "has no token"),
                        ("Accept the model's licence on the hub and give the pods a token (HF_TOKEN from a Secret, in "
                         "spec.env).")),
    "gated, a token without access": ({"HF_TOKEN": "visitor"}, "org/tiny", "ModelForbidden",
                                      "the token of this pod (HF_TOKEN from a Secret, in spec.env) has none",
                                      "Accept the model's licence on the hub with the account of the token"),
    "gated, a wrong token": ({"HF_TOKEN": "mistyped"}, "org/tiny", "ModelForbidden",
                             "the hub does not accept the token of this pod",
                             "it may be mistyped, expired or revoked"),
}  # fmt: skip


@pytest.mark.parametrize(("environ", "name", "code", "words", "remedy"), ACCESS.values(), ids=ACCESS.keys())
@pytest.mark.parametrize("stage", ["inspect", "fetch"])
def test_a_model_that_may_not_be_read_is_refused_for_good(
    stage: str, environ: dict[str, str], name: str, code: str, words: str, remedy: str,
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from inspecting_support import run_stage

    hub.gated, hub.tokens = True, TOKENS
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    params: dict[str, Any] = {"stage": stage, "model": {"name": name}}
    uses = {"uses": [SAMPLE]} if stage == "inspect" else {}
    runtime = {} if stage == "inspect" else {"model_uses": [SAMPLE]}
    exit_code, message = run_stage(tmp_path, params | uses, runtime=runtime)
    assert message.error is not None
    assert (exit_code, message.error.code) == (78, code)
    assert words in message.error.message
    assert remedy in (message.error.hint or "")


def test_a_gated_model_is_read_with_a_token_that_has_access(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated, hub.tokens = True, TOKENS
    monkeypatch.setenv("HF_TOKEN", "owner")
    assert inspect(tmp_path, "org/tiny", [SAMPLE])[0] == 0


def test_an_unknown_revision_is_named(hub: Hub, tmp_path: Path) -> None:
    code, message, _ = refusal(tmp_path, "org/tiny", [SAMPLE], revision="v9")
    assert (code, message) == ("ModelNotFound", "sources[a].revision is 'v9': org/tiny has no such revision")


def test_code_from_a_hub_needs_a_pinned_revision(hub: Hub, tmp_path: Path) -> None:
    trusting = SAMPLE | {"trust_remote_code": True}
    code, message, hint = refusal(tmp_path, "org/tiny", [trusting])
    assert code == "InvalidConfig"
    assert message == "sources[a].trustRemoteCode is 'true': code from a hub runs only from a pinned revision"
    assert hint == "Set sources[a].revision to a commit of 40 digits."
    assert inspect(tmp_path, "org/tiny", [trusting], revision=COMMIT)[0] == 0


def test_a_hub_model_that_needs_code_is_told_to_pin_it(hub: Hub, tmp_path: Path) -> None:
    config = json.loads(hub.files["config.json"])
    hub.files["config.json"] = json.dumps(
        config | {"model_type": "internlm2", "auto_map": {"AutoConfig": "a.B"}}
    ).encode()
    code, _, hint = refusal(tmp_path, "org/tiny", [SAMPLE])
    assert code == "ModelNeedsCode"
    assert "set sources[a].trustRemoteCode: true and sources[a].revision to a commit of 40 digits" in hint


@pytest.mark.parametrize("status", [400, 403, 404, 410, 451])
def test_what_the_hub_refuses_is_final_and_what_it_cannot_do_now_is_not(status: int, hub: Hub, tmp_path: Path) -> None:
    hub.fault = lambda path: HubFault(status) if path.endswith("config.json") else None
    code, message, _ = refusal(tmp_path, "org/tiny", [SAMPLE])
    assert code == ("ModelForbidden" if status == 403 else "ModelNotFound")
    assert "the hub refuses the request" in message
    hub.fault = lambda path: HubFault(503) if path.endswith("config.json") else None
    exit_code, ended = inspect(tmp_path, "org/tiny", [SAMPLE])
    assert ended.error is not None
    assert (exit_code, ended.error.code) == (75, "HubUnreachable")


@dataclass
class Directory:
    """A directory that is read as a remote one."""

    path: Path

    def sizes(self) -> Mapping[str, int]:
        return {path.name: path.stat().st_size for path in self.path.iterdir() if path.is_file()}

    def read(self, name: str, begin: int, end: int) -> bytes:
        return (self.path / name).read_bytes()[begin:end]


def judged(path: Path, shown: Path, used: list[ModelUse]) -> str:
    """Return the facts about a model, or the final error, in words."""
    model = ResolvedModel(path, "org/tiny", None, field="target.model", location="PLACE")
    try:
        return str(inspect_model(model, used, needs_facts=True))
    except WrpoError as error:
        return f"{error.exit_code} {error.message}".replace(str(shown), "PLACE")


@pytest.mark.parametrize("seed", range(16))
def test_an_outline_is_judged_as_the_model_itself(seed: int, tiny_model_dir: Path, tmp_path: Path) -> None:
    draw = random.Random(seed)
    model = copy_of(tiny_model_dir, tmp_path / "model") if seed % 2 else shard(tiny_model_dir, tmp_path / "model")
    done = damage(model, draw)
    for path in model.iterdir():
        # A remote storage has neither.
        if path.is_dir():
            path.rmdir()
        elif path.is_symlink():
            path.unlink()
    used = [ModelUse.model_validate(each) for each in (TRAIN, SAMPLE | {"backend": "Transformers"})]
    write_outline(Directory(model), tmp_path / "outline")
    outlined = judged(tmp_path / "outline", tmp_path / "outline", used)
    assert outlined == judged(model, model, used), done
    assert outlined.startswith(("65 ", "78 ", "model_type=")), outlined


def test_the_kinds_that_vllm_has_are_those_of_the_installed_one() -> None:
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    source = Path(found.submodule_search_locations[0]) / "transformers_utils/config.py"
    tables = [
        node.value
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == "_CONFIG_REGISTRY"
    ]
    (table,) = tables
    assert isinstance(table, ast.Call)
    named = {keyword.arg for keyword in table.keywords if keyword.arg is not None}
    spread = {
        key.value
        for keyword in table.keywords
        if isinstance(keyword.value, ast.Dict)
        for key in keyword.value.keys
        if isinstance(key, ast.Constant)
    }
    assert named | spread == VLLM_KINDS
