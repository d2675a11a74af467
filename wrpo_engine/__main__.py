"""`wrpo-engine STAGE --config FILE`: runs one stage of an experiment."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import click

from wrpo_engine import __version__
from wrpo_engine.config import ErrorInfo, ExitCode, TerminationMessage
from wrpo_engine.errors import ConfigError
from wrpo_engine.exit_codes import help_lines
from wrpo_engine.process import termination
from wrpo_engine.process.environment import prepare_environment
from wrpo_engine.process.unused_libraries import skip_unused_libraries

TOOLS = {
    "lint": ("wrpo_engine.linting.command", "look for faults in triples, prompts and artifacts"),
    "compare": ("wrpo_engine.comparison.command", "compare evaluated experiments, with intervals"),
    "convert": ("wrpo_engine.formats.command", "triples from one format to another"),
    "judge-server": ("wrpo_engine.judging.server.command", "an OpenAI-compatible judge that a reward decides for"),
    "reparse": ("wrpo_engine.judging.reparse", "read a judge's kept replies again, without a request"),
    "quickstart-assets": ("wrpo_engine.quickstart.assets", "the quick start's models and prompts"),
}
"""Name -> module whose `main(arguments)` returns the exit code, imported on use, and line of the help."""
PLANS = {"judge": "wrpo_engine.judging.plan"}
"""Kind of stage -> module whose `main(path)` prints what the stage would do, and returns the exit code."""

_USAGE_HINT = (
    "See `wrpo-engine --help`. If the operator runs a stage that is missing there, the image lacks its distribution or "
    "is of another version."
)
_HELP = (
    """Run one STAGE of a WRPO experiment: read artifacts and a JSON configuration, write one artifact.

\b
Stages, in the order of an experiment:
{stages}

{others}The operator writes the configuration; `wrpo plan -f experiment.yaml` shows it. An artifact that exists is not
recomputed: the stage exits 0 and reports it as cached. Killed stages resume where they stopped.

\b
Tools, without a configuration (each has --help):
{tools}

\b
Environment:
  WRPO_VOLUME_ROOT               mount point of the storage volume (/var/lib/wrpo)
  WRPO_TERMINATION_MESSAGE_PATH  file for the outcome as JSON (/dev/termination-log)
  JOB_COMPLETION_INDEX           index of this process's shard (0)
  WRPO_SCRATCH                   directory for copies of files in S3 (TMPDIR or /tmp)
  WRPO_STORAGE_PATIENCE_SECONDS  time for retries while S3 is unreachable, in seconds (300)
  AWS_...                        credentials and AWS_CA_BUNDLE for S3, as for all AWS tools
  AWS_ENDPOINT_URL               the S3 server, for tools; a stage reads it from its configuration
  WRPO_JUDGE_API_KEY             key of a judge's endpoint
  WRPO_JUDGE_TIMEOUT_SECONDS     time for one reply of a judge, in seconds (300)
  WRPO_JUDGE_PATIENCE_SECONDS    time in which a judge may refuse all requests with 429, in seconds (300)
  WRPO_JUDGE_START_SECONDS       time for a judge of the stage's own to load, in seconds (1800)
  HF_HUB_OFFLINE                 1: never download models or data sets

\b
Exit codes:
"""
    + help_lines()
    + """

\b
Example:
  WRPO_VOLUME_ROOT=$PWD/storage wrpo-engine prepare --config prepare.json
"""
)


def command() -> click.Command:
    """Return the command. Importing the registry of stages raises ConfigError if an installed definition is broken."""
    from wrpo_engine.contract.builtin import BUILT_IN
    from wrpo_engine.contract.definition import Shape
    from wrpo_engine.contract.stages import STAGES

    if hidden := sorted(STAGES.keys() & TOOLS.keys()):
        raise ConfigError("kind of stage", hidden[0], "a tool has this name", "Give the stage another name.")
    others = [definition for definition in STAGES.values() if definition not in BUILT_IN]
    foreign = _table((each.kind, each.summary) for each in others)
    text = _HELP.format(
        stages=_table((each.kind, each.summary) for each in BUILT_IN),
        others=f"\b\nStages of other distributions:\n{foreign}\n\n" if others else "",
        tools=_table((name, summary) for name, (_, summary) in TOOLS.items()),
    )

    @click.command(
        name="wrpo-engine",
        help=text,
        context_settings={"max_content_width": 120},
    )
    @click.argument("stage", type=click.Choice(list(STAGES)), metavar="STAGE")
    @click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        required=True,
        metavar="FILE",
        help="The stage's JSON configuration (wrpo_engine.contract.stage_config.StageConfig).",
    )
    @click.option("--plan", "is_plan", is_flag=True, help="Print what the stage would ask, and do nothing (judge).")
    @click.version_option(__version__, prog_name="wrpo-engine")
    def run_stage(stage: str, config_path: Path, is_plan: bool) -> int:
        if is_plan:
            return _plan(stage, config_path)
        from wrpo_engine.running import install_signal_handlers, run
        from wrpo_engine.stage import StopRequest

        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        logging.getLogger("httpx").setLevel(logging.WARNING)
        prepare_environment(os.environ, is_training=STAGES[stage].shape is Shape.TRAINING)
        stop = StopRequest()
        install_signal_handlers(stop)
        return run(stage, config_path, os.environ, stop=stop)

    return run_stage


def _plan(stage: str, config_path: Path) -> int:
    from wrpo_engine.process.command_line import guarded

    if stage not in PLANS:
        raise click.UsageError(f"the stage {stage} has no --plan; {', '.join(PLANS)} has")
    return guarded(lambda: int(importlib.import_module(PLANS[stage]).main(config_path)))


def _table(rows: Iterable[tuple[str, str]]) -> str:
    listed = list(rows)
    width = max((len(name) for name, _ in listed), default=0) + 2
    return "\n".join(f"  {name:<{width}}{text}" for name, text in listed)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage or tool that the arguments name, and exit with its code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    skip_unused_libraries()
    if arguments and arguments[0] in TOOLS:
        prepare_environment(os.environ)
        sys.exit(importlib.import_module(TOOLS[arguments[0]][0]).main(arguments[1:]))
    is_rank = False
    try:
        is_rank = _is_rank(arguments)
        code = command().main(arguments, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = ExitCode.USAGE
        _leave(ErrorInfo(code="InvalidUsage", message=error.format_message(), hint=_USAGE_HINT), code, os.environ)
    except (click.Abort, KeyboardInterrupt):
        code = ExitCode.INTERRUPTED
    except ConfigError as error:
        code = _refused(error, os.environ)
    if is_rank:
        _end_rank(code or 0)
    sys.exit(code or 0)


def _is_rank(arguments: Sequence[str]) -> bool:
    from wrpo_engine.contract.definition import Shape
    from wrpo_engine.contract.stages import STAGES

    return bool(arguments) and arguments[0] in STAGES and STAGES[arguments[0]].shape is Shape.TRAINING


def _end_rank(code: int) -> NoReturn:
    """End a rank's process once its exit handlers have run, without the finalization of the interpreter.

    Threads of gloo may outlive their process group. If one of them releases a tensor during the finalization, the
    process aborts (pytorch/pytorch issue 190489), and a rank whose work is committed counts as failed.
    """
    atexit._run_exitfuncs()  # noqa: SLF001 (there is no public name; os._exit alone would skip them)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _refused(error: ConfigError, environ: Mapping[str, str]) -> int:
    """Report that no stage can run here, as a stage reports its own errors."""
    print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
    _leave(ErrorInfo.of(error), error.exit_code, environ)
    return error.exit_code


def _leave(error: ErrorInfo, code: int, environ: Mapping[str, str]) -> None:
    message = TerminationMessage(outcome="Failed", error=error, exit_code=code)
    try:
        termination.write(message, environ)
    except OSError as failure:
        print(f"cannot write the termination message: {failure}", file=sys.stderr)


if __name__ == "__main__":
    main()
