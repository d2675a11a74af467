"""Context and result of a stage, and the loader of its function."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import cast

from wrpo_engine.artifacts import Artifact, ArtifactStore, ArtifactWriter, InputEntry
from wrpo_engine.artifacts.checks import address
from wrpo_engine.artifacts.roots import root_of
from wrpo_engine.config import ArtifactRef
from wrpo_engine.contract.definition import Shape
from wrpo_engine.contract.model_facts import ModelFacts
from wrpo_engine.contract.stage_config import StageConfig
from wrpo_engine.contract.stages import STAGES
from wrpo_engine.errors import ConfigError, Interrupted, MissingInputError
from wrpo_engine.process.progress import Progress

_STORAGE_SCHEME = "storage://"


class StopRequest:
    """Set by SIGTERM; a stage looks at it between units of work."""

    def __init__(self) -> None:
        self._requested = False

    @property
    def requested(self) -> bool:
        """Whether the stage should stop."""
        return self._requested

    def request(self) -> None:
        """Ask the stage to stop at the next check."""
        self._requested = True

    def raise_if_requested(self) -> None:
        """Raise Interrupted if the stage should stop."""
        if self._requested:
            raise Interrupted


@dataclass
class StepProgress:
    """How far a training stage has come, known to the outermost frame when the stage ends with an error."""

    step: int | None = None
    """Optimizer steps completed."""


@dataclass(kw_only=True)
class StageContext:
    """One run of one stage."""

    config: StageConfig
    store: ArtifactStore
    output: ArtifactWriter
    shard: int
    progress: Progress
    stop: StopRequest
    environ: Mapping[str, str]
    clock: Callable[[], datetime]
    step_progress: StepProgress = field(default_factory=StepProgress)
    _inputs: dict[str, Artifact] = field(default_factory=dict)

    def input(self, role: str) -> Artifact:
        """Return the upstream artifact of a role; the same object every time, so that files are verified once."""
        if role not in self._inputs:
            self._inputs[role] = self._open(role)
        return self._inputs[role]

    def _open(self, role: str) -> Artifact:
        ref = self.config.inputs.get(role)
        if ref is None:
            roles = ", ".join(sorted(self.config.inputs)) or "none"
            raise ConfigError("inputs", roles, f"stage {self.config.params.kind()} needs the role {role!r}", "Add it.")
        artifact = self.store.open(ref)
        if artifact is None:
            raise MissingInputError(
                f"input {role!r}, artifact {address(ref)}, does not exist: no manifest.json below "
                f"{self.store.location}",
                hint=f"Run the stage {ref.stage} first, or mount the storage that holds its artifact.",
            )
        return artifact

    def resolve_path(self, reference: str, *, only: Callable[[str], bool] | None = None) -> str:
        """Turn storage://PATH into a local path; absolute paths and hub ids stay as they are.

        On S3 the content is downloaded first; of a directory only the files for whose relative names `only` is true.
        Every process of a distributed stage may call it: those of one pod download once.
        """
        below = self.below_root(reference)
        return reference if below is None else str(self.store.local_copy(below, only))

    def below_root(self, reference: str) -> str | None:
        """Return the path below the storage root that storage://PATH names; None for other references."""
        if not reference.startswith(_STORAGE_SCHEME):
            return None
        below = PurePosixPath(reference.removeprefix(_STORAGE_SCHEME))
        if below.is_absolute() or ".." in below.parts:
            raise ConfigError(
                "storage reference",
                reference,
                "the path must stay below the storage root",
                "Write storage://DIRECTORY/NAME.",
            )
        return below.as_posix()

    def model_field(self, parameter: str, default: str | None = None) -> str:
        """Return the field of the spec that names the model of a parameter, for errors.

        Without an experiment it is `default`, or the parameter itself.
        """
        section = self.config.runtime.model_sections.get(parameter)
        return (default or parameter) if section is None else f"{section}.model"

    @property
    def is_main(self) -> bool:
        """Rank 0 of a distributed stage, or the only process: it alone reports and commits."""
        return self.environ.get("RANK", "0") == "0"


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """Content of the termination message; `output.commit` creates the artifact itself."""

    rows: int
    metrics: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    facts: ModelFacts | None = None
    """The model that the stage has read."""


StageFunction = Callable[[StageContext], StageResult]


def load_stage(kind: str) -> StageFunction:
    """Import the function that runs a kind of stage, and only what this kind needs: it starts quickly."""
    return cast(StageFunction, _imported(STAGES[kind].run))


def reused_facts(ctx: StageContext, existing: Artifact) -> ModelFacts | None:
    """Return the facts about the model of an existing artifact; None for stages that are not about one."""
    definition = STAGES.get(ctx.config.params.kind())
    if definition is None or definition.reuse is None:
        return None
    return cast(Callable[[StageContext, Artifact], ModelFacts | None], _imported(definition.reuse))(ctx, existing)


def _imported(reference: str) -> object:
    module, function = reference.split(":")
    return getattr(importlib.import_module(module), function)


def open_store(
    config: StageConfig,
    environ: Mapping[str, str],
    clock: Callable[[], datetime],
    *,
    is_stopping: Callable[[], bool] = lambda: False,
) -> ArtifactStore:
    """Return the stage's store; one that cannot be used is an error here, before any work."""
    return root_of(config.storage, environ).store(clock, is_stopping=is_stopping)


def make_context(
    config: StageConfig,
    *,
    environ: Mapping[str, str],
    clock: Callable[[], datetime],
    progress: Progress,
    stop: StopRequest,
) -> StageContext:
    """Open the store and the output; inputs are opened here too, so that a missing one is found before any work."""
    store = open_store(config, environ, clock, is_stopping=lambda: stop.requested)
    shard = _shard(config, environ)
    inputs: dict[str, InputEntry] = {}
    output = store.writer(
        config.output,
        config={"params": config.params.model_dump(mode="json"), "inputs": _addresses(config.inputs)},
        inputs=inputs,
    )
    context = StageContext(
        config=config,
        store=store,
        output=output,
        shard=shard,
        progress=progress,
        stop=stop,
        environ=environ,
        clock=clock,
    )
    if output.committed() is None:
        for role in sorted(config.inputs):
            artifact = context.input(role)
            inputs[role] = InputEntry(stage=artifact.ref.stage, hash=artifact.ref.hash, digest=artifact.digest)
        output.begin()
    return context


def _addresses(inputs: Mapping[str, ArtifactRef]) -> dict[str, str]:
    return {role: address(ref) for role, ref in sorted(inputs.items())}


def _shard(config: StageConfig, environ: Mapping[str, str]) -> int:
    if STAGES[config.params.kind()].shape is Shape.TRAINING:
        # A TrainJob's pods are those of an Indexed Job, and have an index all the same.
        return 0
    text = environ.get("JOB_COMPLETION_INDEX", "0")
    shards = config.runtime.shards
    if not text.isdigit() or int(text) >= shards:
        raise ConfigError(
            "JOB_COMPLETION_INDEX",
            text,
            f"it must be a whole number from 0 to {shards - 1} (runtime.shards is {shards})",
            "Run the stage as an Indexed Job with as many completions as shards.",
        )
    return int(text)
