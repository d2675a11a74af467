"""Where a model's files are, and its tokenizer: the checks that fail before minutes are spent on loading."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrpo_engine.artifacts.volume import address
from wrpo_engine.config import ModelRef, RewardModel
from wrpo_engine.errors import ConfigError, DataError, TemporaryError
from wrpo_engine.stage import StageContext

MODEL_DIRECTORY = "model"
"""Where a stage that makes a model puts it inside its artifact."""
_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken"]


@dataclass(frozen=True)
class ResolvedModel:
    """A model's local directory; `identity` and `revision` say for the manifest what it is."""

    path: Path
    identity: str
    revision: str | None
    trust_remote_code: bool = False
    chat_template: str | None = None

    def details(self) -> dict[str, Any]:
        return {"name": self.identity, "revision": self.revision}


def resolve_model(model: ModelRef | RewardModel, ctx: StageContext, *, field: str = "model") -> ResolvedModel:
    """Find a model's files, downloading them if they are on a hub. `field` is its field in the experiment's spec."""
    template = model.chat_template if isinstance(model, ModelRef) else None
    if isinstance(model, ModelRef) and model.input is not None:
        artifact = ctx.input(model.input)
        names = artifact.files(f"{MODEL_DIRECTORY}/")
        if not names:
            raise DataError(
                f"artifact {address(artifact.ref)} holds no model directory", code="ArtifactDamaged", field=field
            )
        for file in names:
            artifact.file(file)
        return ResolvedModel(
            artifact.directory / MODEL_DIRECTORY,
            address(artifact.ref),
            artifact.digest,
            model.trust_remote_code,
            template,
        )
    name = model.name
    assert name is not None
    reference = ctx.resolve_path(name)
    if Path(reference).is_absolute():
        path = Path(reference)
        revision: str | None = None
        _check_directory(path, name, field)
    else:
        if model.trust_remote_code and not model.revision:
            raise ConfigError(
                f"{field}.trustRemoteCode",
                "true",
                "code from a hub runs only from a pinned revision",
                f"Set {field}.revision.",
            )
        path = _download(name, model.revision, ctx.environ, field)
        # Snapshots lie in a directory named by their commit.
        revision = path.name
        _check_directory(path, name, field)
    return ResolvedModel(path, name, revision, model.trust_remote_code, template)


def model_path(model: ModelRef | RewardModel, ctx: StageContext, *, field: str = "model") -> str:
    """Return the local directory of a model."""
    return str(resolve_model(model, ctx, field=field).path)


def load_tokenizer(model: ModelRef, ctx: StageContext, *, field: str = "model") -> Any:
    """Return the tokenizer with the chat template the experiment asks for; one without any is an error."""
    return tokenizer_of(resolve_model(model, ctx, field=field), field=field)


def tokenizer_of(model: ResolvedModel, *, field: str = "model", needs_template: bool = True) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(model.path), trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(
            field,
            model.identity,
            f"its tokenizer cannot be loaded: {_first_line(error)}",
            "Use a model directory with tokenizer.json or another tokenizer that transformers knows.",
            code="TokenizerInvalid",
        ) from error
    if model.chat_template is not None:
        tokenizer.chat_template = model.chat_template
    if needs_template and not tokenizer.chat_template:
        raise ConfigError(
            f"{field}.chatTemplate",
            "<unset>",
            f"the tokenizer of {model.identity} has no chat template",
            f"Set {field}.chatTemplate, or use an instruction-tuned model.",
            code="MissingChatTemplate",
        )
    return tokenizer


def context_length(model: ResolvedModel) -> int | None:
    """Return how many tokens the model can attend to, or None if its config does not say."""
    config = json.loads((model.path / "config.json").read_text())
    text_config = config.get("text_config") or config
    length = text_config.get("max_position_embeddings")
    return int(length) if length else None


def stop_token_ids(tokenizer: Any, model: ResolvedModel, end_of_turn: int) -> list[int]:
    """Return every token that ends an answer: the template's, the tokenizer's and the generation config's."""
    stops = {end_of_turn}
    if tokenizer.eos_token_id is not None:
        stops.add(int(tokenizer.eos_token_id))
    path = model.path / "generation_config.json"
    if path.exists():
        listed = json.loads(path.read_text()).get("eos_token_id")
        stops.update(int(token) for token in (listed if isinstance(listed, list) else [listed]) if token is not None)
    return sorted(stops)


def _check_directory(path: Path, name: str, field: str) -> None:
    if not path.is_dir():
        raise ConfigError(
            field,
            name,
            f"there is no directory {path}",
            "Check the path and that its volume is mounted.",
            code="ModelNotFound",
        )
    if not (path / "config.json").is_file():
        raise ConfigError(
            field,
            name,
            f"{path} holds no config.json, so it is not a Hugging Face model directory",
            "Name the directory that holds config.json and *.safetensors.",
            code="ModelInvalid",
        )
    if not any(path.glob("*.safetensors")):
        others = _names(path.glob("*.bin")) or _names(path.glob("*.gguf")) or "no weights"
        raise ConfigError(
            field,
            name,
            f"{path} holds no *.safetensors (found: {others})",
            "Convert the weights to safetensors; other formats are not loaded, as they can run code.",
            code="ModelNotSafetensors",
        )


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(sorted(path.name for path in paths)[:3])


def _download(name: str, revision: str | None, environ: Mapping[str, str], field: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    offline = environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES, local_files_only=offline))
    except GatedRepoError as error:
        raise ConfigError(
            field,
            name,
            "access to this model has to be granted first",
            "Accept its licence on the hub and give the pod a token (HF_TOKEN from a Secret).",
            code="ModelForbidden",
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"{field}.revision", str(revision), f"{name} has no such revision", "Check the name.", code="ModelNotFound"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(
            field,
            name,
            "there is no such model on the hub, or it is private",
            "Check the spelling, or write an absolute path or storage://PATH for a local directory.",
            code="ModelNotFound",
        ) from error
    except LocalEntryNotFoundError as error:
        if offline:
            raise ConfigError(
                field,
                name,
                "it is not in the local cache, and HF_HUB_OFFLINE forbids downloading",
                "Put the model on the storage volume (storage://PATH) or allow downloads.",
                code="ModelNotFound",
            ) from error
        raise _unreachable(name, field, error) from error
    except (HfHubHTTPError, ConnectionError, TimeoutError) as error:
        raise _unreachable(name, field, error) from error


def _unreachable(name: str, field: str, error: Exception) -> TemporaryError:
    return TemporaryError(
        f"{field} is {name!r}: it cannot be downloaded now ({_first_line(error)})",
        code="HubUnreachable",
        field=field,
        hint="Check the network, or put the model on the storage volume and name it storage://PATH.",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
