"""Run of one stage: configuration in, exit code and termination message out."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from wrpo_engine.artifacts import Artifact
from wrpo_engine.artifacts.volume import address
from wrpo_engine.config import ErrorInfo, ExitCode, TerminationMessage
from wrpo_engine.contract.definition import Image, Shape
from wrpo_engine.contract.evaluation import JudgeParams
from wrpo_engine.contract.stage_config import StageConfig
from wrpo_engine.contract.stages import STAGES
from wrpo_engine.errors import (
    AlreadyCommitted,
    Interrupted,
    MissingInputError,
    WrpoError,
)
from wrpo_engine.process import spares, termination
from wrpo_engine.process.cli import read_config
from wrpo_engine.process.machine import CudaFacts, require_driver
from wrpo_engine.process.moments import LOADED
from wrpo_engine.process.progress import make_progress
from wrpo_engine.process.storage_errors import storage_error
from wrpo_engine.stage import (
    StageContext,
    StageFunction,
    StageResult,
    StepProgress,
    StopRequest,
    load_stage,
    make_context,
    reused_facts,
)

log = logging.getLogger("wrpo_engine")

Clock = Callable[[], datetime]


@dataclass(frozen=True, kw_only=True)
class _Process:
    """What the process gives to the stage."""

    environ: Mapping[str, str]
    stop: StopRequest
    clock: Clock
    load: Callable[[str], StageFunction]
    step_progress: StepProgress

    @property
    def is_main(self) -> bool:
        return self.environ.get("RANK", "0") == "0"


def run(  # noqa: PLR0913 (tests replace the last two)
    stage: str,
    config_path: Path,
    environ: Mapping[str, str],
    *,
    stop: StopRequest,
    clock: Clock = lambda: datetime.now(UTC),
    load: Callable[[str], StageFunction] = load_stage,
) -> int:
    """Run a stage and return its exit code; every outcome is on stderr and in the termination message."""
    process = _Process(environ=environ, stop=stop, clock=clock, load=load, step_progress=StepProgress())
    try:
        config = read_config(stage, config_path)
        message = _run_stage(config, process)
    except WrpoError as error:
        code, message = _failed(error)
    except OSError as error:
        known = storage_error(error)
        code, message = _failed(known) if known is not None else _crashed(error)
    except Exception as error:  # noqa: BLE001 (the process's outermost frame: everything becomes an outcome)
        code, message = _crashed(error)
    else:
        code = ExitCode.OK
    if code != ExitCode.OK:
        message = message.model_copy(update={"step": process.step_progress.step, "exit_code": code})
    if process.is_main or environ.get("LOCAL_RANK") == "0" or message.outcome == "Failed":
        try:
            termination.write(message, environ)
        except OSError as error:
            log.warning("cannot write the termination message: %s", error)
    return code


def _run_stage(config: StageConfig, process: _Process) -> TerminationMessage:
    stage, environ, is_main = config.params.kind(), process.environ, process.is_main
    # Before anything starts a thread.
    spares.keep(int(isinstance(config.params, JudgeParams) and config.params.serve_reward is not None), environ)
    progress = make_progress(config.output.stage, environ, time.monotonic, is_main=is_main)
    try:
        ctx = make_context(config, environ=environ, clock=process.clock, progress=progress, stop=process.stop)
        ctx.step_progress = process.step_progress
        if (existing := ctx.output.committed()) is not None:
            log.info("%s already exists; nothing to do", address(config.output))
            return _cached(ctx, existing)
        log.info("%s: writing %s", config.experiment, address(config.output))
        process.stop.raise_if_requested()
        _check_driver(stage, is_main=is_main)
        try:
            function = process.load(stage)
            if is_main:
                log.info(LOADED)
            return _succeeded(ctx, function(ctx), cached=False)
        except (AlreadyCommitted, MissingInputError) as error:
            # Who commits also removes what only its own work needed.
            if (existing := ctx.output.committed()) is None:
                raise
            log.info("%s; this one ends with it", error.message)
            return _cached(ctx, existing)
    finally:
        progress.close()


def _check_driver(stage: str, *, is_main: bool) -> None:
    """Refuse a node whose NVIDIA driver is too old, if the stage runs a model; other stages need no device."""
    definition = STAGES.get(stage)
    if definition is None or (definition.shape is Shape.JOB and definition.image is not Image.SAMPLER):
        return
    line = require_driver(CudaFacts.read())
    if line is not None and is_main:
        log.info("%s", line)


def _cached(ctx: StageContext, existing: Artifact) -> TerminationMessage:
    step = existing.manifest.details.get("step")
    result = StageResult(
        rows=existing.manifest.rows,
        metrics=existing.manifest.metrics,
        step=step if isinstance(step, int) else None,
        facts=reused_facts(ctx, existing),
    )
    ctx.progress.update(1, 1)
    return _succeeded(ctx, result, cached=True)


def _succeeded(ctx: StageContext, result: StageResult, *, cached: bool) -> TerminationMessage:
    artifact = ctx.output.committed()
    return TerminationMessage(
        outcome="Succeeded",
        cached=cached,
        rows=result.rows,
        step=result.step,
        metrics=result.metrics,
        facts=result.facts,
        artifact=address(artifact.ref) if artifact else None,
        digest=artifact.digest if artifact else None,
    )


def _failed(error: WrpoError) -> tuple[int, TerminationMessage]:
    interrupted = isinstance(error, Interrupted)
    print(f"{'interrupted' if interrupted else 'error'}: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    outcome = TerminationMessage(outcome="Interrupted" if interrupted else "Failed", error=ErrorInfo.of(error))
    return error.exit_code, outcome


def _crashed(error: Exception) -> tuple[int, TerminationMessage]:
    traceback.print_exception(error, file=sys.stderr)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        # By name: importing torch to ask for its class would cost seconds in stages without it.
        hint = "Give the stage more memory, or lower reward.batchTokens, training.microBatchTokens or maxLength."
        return _failed(WrpoError(text, code="OutOfMemory", hint=hint))
    return _failed(WrpoError(text, hint="This is unexpected: see the pod's log for the traceback. It is retried."))


def install_signal_handlers(stop: StopRequest) -> None:
    """SIGTERM and Ctrl-C ask the stage to stop; a second Ctrl-C ends it at once."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        stop.request()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.request()
        # Not print: the signal may have come within a print, and buffered streams refuse a second one.
        os.write(2, b"stopping after the current piece of work (Ctrl-C again stops at once)\n")

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, interrupt)
