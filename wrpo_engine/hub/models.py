"""Resolution of a model's files and tokenizer, with the checks that must fail before a long load."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrpo_engine.artifacts import Artifact
from wrpo_engine.artifacts.checks import address
from wrpo_engine.config import ModelRef, RewardModel
from wrpo_engine.contract.types import is_hub_id
from wrpo_engine.errors import ConfigError, DataError, first_line
from wrpo_engine.hub.client import HubPatience, hub_errors, is_offline, offline_error, section_of
from wrpo_engine.loading.context import context_of
from wrpo_engine.loading.files import (
    ADAPTER_FILE,
    CONFIG_FILE,
    GENERATION_FILE,
    HUB_IGNORED,
    HUB_PATTERNS,
    ModelDirectory,
    TensorFact,
    is_model_file,
    shown,
)
from wrpo_engine.loading.guard import loading
from wrpo_engine.stage import StageContext
from wrpo_engine.text.chat import check_template

MODEL_DIRECTORY = "model"
"""Directory of the model inside the artifact of a stage that makes one."""
FETCH_ROLE = "fetch/"
"""Roles of models that were downloaded beforehand."""
FETCHED = "fetched"
"""Keys of their manifests' details: name, requested revision, commit."""


UNKNOWN_KIND = f"its {CONFIG_FILE} has the model_type {{kind!r}}, which transformers does not know"


@dataclass(frozen=True)
class ResolvedModel:
    """A model's local directory; `identity` and `revision` say for the manifest what it is."""

    path: Path
    identity: str
    revision: str | None
    trust_remote_code: bool = False
    chat_template: str | None = None
    field: str = "model"
    """The model's field in the experiment's spec, for error messages."""
    location: str = ""
    """Place of the model, for error messages. Empty: the path."""

    def details(self) -> dict[str, Any]:
        """Return the model's name and revision for the manifest."""
        return {"name": self.identity, "revision": self.revision}

    @property
    def directory(self) -> ModelDirectory:
        """The model's files, with their name for errors."""
        return ModelDirectory(self.path, self.identity, self.field)


def resolve_model(model: ModelRef | RewardModel, ctx: StageContext, *, field: str = "model") -> ResolvedModel:
    """Find a model's files, downloading them if they are on a hub or in a bucket.

    `field` is its field in the experiment's spec. Every process of a distributed stage may call it: what one of a pod
    downloaded, the others find; on S3 each pod has to, as paths of one pod are not another's.
    """
    template = model.chat_template if isinstance(model, ModelRef) else None
    if isinstance(model, ModelRef) and model.input is not None:
        artifact = ctx.input(model.input)
        _bring_model(artifact, field)
        return ResolvedModel(
            artifact.directory / MODEL_DIRECTORY,
            address(artifact.ref),
            artifact.digest,
            model.trust_remote_code,
            template,
            field,
        )
    name = model.name
    assert name is not None
    reference = ctx.resolve_path(name, only=is_model_file)
    revision: str | None = None
    if Path(reference).is_absolute():
        path = Path(reference)
        check_directory(path, name, field)
    else:
        require_pinned_code(model, field)
        fetched = _fetched(name, model.revision, ctx, field)
        if fetched is not None:
            path, revision = fetched
        else:
            path = download(name, model.revision, ctx, field)
            # Snapshots lie in a directory named by their commit.
            revision = path.name
        check_directory(path, name, field)
    return ResolvedModel(path, name, revision, model.trust_remote_code, template, field)


def require_pinned_code(model: ModelRef | RewardModel, field: str) -> None:
    """Refuse code from a hub without a pinned revision, because it may change."""
    if model.trust_remote_code and not model.revision:
        rule = "code from a hub runs only from a pinned revision"
        section = section_of(field)
        hint = f"Set {section}.revision to a commit of 40 digits."
        raise ConfigError(f"{section}.trustRemoteCode", "true", rule, hint)


def _bring_model(artifact: Artifact, field: str) -> None:
    """Verify the model's files; on S3 this downloads them."""
    names = artifact.files(f"{MODEL_DIRECTORY}/")
    if not names:
        raise DataError(
            f"artifact {address(artifact.ref)} holds no model directory", code="ArtifactDamaged", field=field
        )
    artifact.fetch_all(names)


def _fetched(name: str, revision: str | None, ctx: StageContext, field: str) -> tuple[Path, str] | None:
    """Return directory and commit of a hub's model that a fetch stage downloaded beforehand, if there is one."""
    for role in sorted(ctx.config.inputs):
        if not role.startswith(FETCH_ROLE):
            continue
        artifact = ctx.input(role)
        source = artifact.manifest.details.get(FETCHED, {})
        if source.get("name") == name and revision in {source.get("requested"), source.get("revision")}:
            _bring_model(artifact, field)
            return artifact.directory / MODEL_DIRECTORY, str(source["revision"])
    return None


def model_path(model: ModelRef | RewardModel, ctx: StageContext, *, field: str = "model") -> str:
    """Return the local directory of a model."""
    return str(resolve_model(model, ctx, field=field).path)


def load_tokenizer(model: ModelRef, ctx: StageContext, *, field: str = "model") -> Any:
    """Return the tokenizer with the chat template the experiment asks for; one without any is an error."""
    return tokenizer_of(resolve_model(model, ctx, field=field), field=field)


def tokenizer_of(model: ResolvedModel, *, field: str = "model", needs_template: bool = True) -> Any:
    """Return a model's tokenizer with the chat template that the experiment asks for.

    `field` is the model's in the experiment's spec. With `needs_template` a template that cannot be used is refused.
    """
    # A tokenizer's loader reads config.json, too, and would call its faults the tokenizer's.
    known_config(model)
    tokenizer = read_tokenizer(
        str(model.path), field=field, identity=model.identity, trust_remote_code=model.trust_remote_code
    )
    if model.chat_template is not None:
        tokenizer.chat_template = model.chat_template
    if not needs_template:
        return tokenizer
    if not tokenizer.chat_template:
        raise ConfigError(
            f"{field}.chatTemplate",
            "<unset>",
            f"the tokenizer of {model.identity} has no chat template",
            f"Set {field}.chatTemplate, or use an instruction-tuned model.",
            code="MissingChatTemplate",
        )
    check_template(tokenizer, field=f"{field}.chatTemplate", is_set=model.chat_template is not None)
    return tokenizer


def code_error(identity: str, field: str, rule: str) -> ConfigError:
    """Return the error of a model that needs code of its repository, which the experiment does not allow.

    `field` is the model's section of the spec.
    """
    pin = f" and {field}.revision to a commit of 40 digits" if is_hub_id(identity) else ""
    return ConfigError(
        f"{field}.trustRemoteCode",
        "false",
        f"{identity} needs the Python code of its repository: {rule}",
        f"Read that code, then set {field}.trustRemoteCode: true{pin}; or use another model.",
        code="ModelNeedsCode",
    )


def _asks_for_code(error: BaseException) -> bool:
    """Return whether a loader of Transformers refused to run code."""
    return "trust_remote_code" in str(error)


def read_tokenizer(path: str, *, field: str, identity: str, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a directory or of a hub's model; ConfigError names `field` and `identity`."""
    from transformers import AutoTokenizer

    def refuse(error: BaseException) -> ConfigError:
        if not trust_remote_code and _asks_for_code(error):
            return code_error(identity, field, "its tokenizer is part of that code")
        return ConfigError(
            field,
            identity,
            f"its tokenizer cannot be loaded: {first_line(error)}",
            "Use a model directory with tokenizer.json or another tokenizer that transformers knows.",
            code="TokenizerInvalid",
        )

    with loading(refuse):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        # Some settings of the wrong type show only in use.
        tokenizer.decode(tokenizer("?", verbose=False)["input_ids"], skip_special_tokens=True)
    return tokenizer


def transformers_config(model: ResolvedModel) -> Any:
    """Return Transformers' configuration of a model; ConfigError if config.json is not one that it knows."""
    from transformers import AutoConfig

    def refuse(error: BaseException) -> ConfigError:
        if not model.trust_remote_code and _asks_for_code(error):
            return code_error(model.identity, section_of(model.field), UNKNOWN_KIND.format(kind=str(kind)[:80]))
        return model.directory.invalid(
            f"transformers cannot read its {CONFIG_FILE}: {first_line(error)}",
            "Use a model that this version of transformers knows; one with custom code needs trustRemoteCode.",
        )

    kind = model.directory.read_object(CONFIG_FILE).get("model_type")
    with loading(refuse):
        return AutoConfig.from_pretrained(str(model.path), trust_remote_code=model.trust_remote_code)


def known_config(model: ResolvedModel) -> Any | None:
    """Return Transformers' configuration, or None if only the model's own code or another library knows its kind."""
    from transformers import CONFIG_MAPPING

    kind = model.directory.read_object(CONFIG_FILE).get("model_type")
    try:
        return transformers_config(model)
    except ConfigError:
        if isinstance(kind, str) and kind in CONFIG_MAPPING:
            raise
        return None


def context_length(model: ResolvedModel) -> int | None:
    """Return how many tokens the model can attend to, or None if its config does not say."""
    return context_of(model.directory.read_object(CONFIG_FILE))


def declared_architectures(model: ResolvedModel) -> list[str]:
    """Return the names of the classes that the model's config declares; empty if it declares none."""
    names = model.directory.read_object(CONFIG_FILE).get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def vocabulary_size(model: ResolvedModel) -> int | None:
    """Return how many token ids the model's embedding knows, or None if its config does not say."""
    config = model.directory.read_object(CONFIG_FILE)
    nested = config.get("text_config")
    size = (nested if isinstance(nested, dict) and nested else config).get("vocab_size")
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def check_vocabulary(model: ResolvedModel, tokenizer: Any, used_ids: Iterable[int] = ()) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for.

    A special token beyond the embedding is refused only if it is among `used_ids`, for example a template's tokens.
    The reason: published text models have tokenizers that also know an image's token.
    """
    size = vocabulary_size(model)
    if size is None:
        return
    used = {*used_ids, *(token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None)}
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    beyond = sorted(
        (token, text)
        for text, token in tokenizer.get_vocab().items()
        if token >= size and (token in used or token not in special)
    )
    if beyond:
        raise model.directory.invalid(
            f"its tokenizer has tokens that its embedding of {size} rows does not: "
            f"{shown([f'{text!r} ({token})' for token, text in beyond])}",
            "Use the tokenizer of this model, or resize its embedding (model.resize_token_embeddings).",
            code="TokenizerInvalid",
        )


def stop_token_ids(tokenizer: Any, model: ResolvedModel, end_of_turn: int) -> list[int]:
    """Return every token that ends a response: the template's, the tokenizer's and the generation config's."""
    stops = {end_of_turn, *generation_stops(model)}
    if tokenizer.eos_token_id is not None:
        stops.add(int(tokenizer.eos_token_id))
    return sorted(stops)


def generation_stops(model: ResolvedModel) -> set[int]:
    """Return the stop tokens that generation_config.json lists; ConfigError if the file cannot be used."""
    from transformers import GenerationConfig

    directory = model.directory
    if not directory.has(GENERATION_FILE):
        return set()

    def refuse(error: BaseException) -> ConfigError:
        return directory.invalid(
            f"transformers cannot read its {GENERATION_FILE}: {first_line(error)}",
            "Correct the file, or remove it.",
            code="ModelDamaged",
        )

    listed = directory.read_object(GENERATION_FILE).get("eos_token_id")
    tokens = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in tokens):
        raise directory.invalid(
            f"eos_token_id of {GENERATION_FILE} is {str(listed)[:80]}, which is neither a token id nor a list of them",
            "Correct the file, or remove it.",
            code="ModelDamaged",
        )
    with loading(refuse):
        GenerationConfig.from_pretrained(str(model.path))
    # Some write -1 for none.
    return {token for token in tokens if token >= 0}


def tensor_facts(model: ResolvedModel) -> dict[str, TensorFact]:
    """Return what the headers of a model's weights say; ConfigError if a file is damaged or the names are wrapped."""
    facts = model.directory.tensor_facts()
    model.directory.check_names(facts)
    return facts


def check_directory(path: Path, name: str, field: str, location: str = "") -> None:
    """Raise ConfigError unless `path` is a directory with config.json and safetensors of a whole model.

    Messages name `location`, or the path if it is empty.
    """
    place = location or path
    if not path.is_dir():
        raise ConfigError(
            field,
            name,
            f"there is no directory {place}",
            "Check the path and that its volume is mounted.",
            code="ModelNotFound",
        )
    directory = ModelDirectory(path, name, field)
    if directory.has(ADAPTER_FILE):
        raise directory.invalid(
            f"{place} holds an adapter ({ADAPTER_FILE}), not a model by itself",
            f"Merge the adapter into its base model; if that is done already, remove {ADAPTER_FILE}.",
        )
    if not directory.has(CONFIG_FILE):
        raise directory.invalid(
            f"{place} holds no config.json, so it is not a Hugging Face model directory",
            "Name the directory that holds config.json and *.safetensors.",
        )
    directory.check_pointers(_names_of(path))
    if not any(path.glob("*.safetensors")):
        others = _names(path.glob("*.bin")) or _names(path.glob("*.gguf")) or "no weights"
        raise ConfigError(
            field,
            name,
            f"{place} holds no *.safetensors (found: {others})",
            "Convert the weights to safetensors; other formats are not loaded, as they can run code.",
            code="ModelNotSafetensors",
        )


def _names_of(path: Path) -> list[str]:
    return [file.name for file in path.iterdir() if is_model_file(file.name)]


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(sorted(path.name for path in paths)[:3])


def download(name: str, revision: str | None, ctx: StageContext, field: str) -> Path:
    """Return the snapshot of a hub's model in the hub client's cache, downloaded unless that is forbidden."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    offline = is_offline(ctx.environ)

    def request() -> str:
        try:
            path: str = snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(HUB_PATTERNS),
                ignore_patterns=list(HUB_IGNORED),
                local_files_only=offline,
            )
        except LocalEntryNotFoundError as error:
            if offline:
                raise offline_error(name, field) from error
            # The library hides the hub's reply, which shows whether a retry can help.
            if isinstance(error.__cause__, Exception):
                raise error.__cause__ from None
            raise
        return path

    with hub_errors(name, revision, field):
        patience = HubPatience.of(ctx.environ, ctx.stop.raise_if_requested)
        return Path(patience.call(f"downloading {name}", request))
