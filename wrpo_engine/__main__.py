"""`wrpo-engine STAGE --config FILE`: runs one stage of an experiment."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from wrpo_engine import __version__
from wrpo_engine.cli import install_signal_handlers, run
from wrpo_engine.config import ExitCode, StageKind
from wrpo_engine.contract.exit_codes import help_lines
from wrpo_engine.environment import prepare_environment
from wrpo_engine.stage import StopRequest

TOOLS = {
    "convert": "wrpo_engine.formats.command",
    "lint": "wrpo_engine.linting.command",
    "quickstart-assets": "wrpo_engine.quickstart.assets",
}
"""Modules whose `main(arguments)` returns the exit code; imported on use."""

_HELP = (
    """Run one STAGE of a WRPO experiment: read artifacts and a JSON configuration, write one artifact.

\b
Stages, in the order of an experiment:
  prepare         read prompts, drop empty and duplicate ones, split them
  fetch           download a model of a hub into the storage
  sample          answer prompts with one model
  score           score answers with the reward model
  curate-sft      choose the best source answer for every SFT prompt
  sft             fine-tune the target on those answers
  curate-triples  choose (y_ws, y_wt, y_l) for every preference prompt
  train           preference optimisation of the fine-tuned target
  evaluate        answer and score held-out prompts with all models
  report          one HTML file about everything above

The operator writes the configuration; `wrpo plan -f experiment.yaml` shows it. An artifact that exists is not made
again: the stage exits 0 and says cached. Killed stages continue where they stopped.

\b
Tools, without a configuration (each has --help):
  lint               look for faults in triples, prompts and artifacts
  convert            triples from one format to another
  quickstart-assets  the quick start's models and prompts

\b
Environment:
  WRPO_VOLUME_ROOT               where the storage volume is mounted (/var/lib/wrpo)
  WRPO_TERMINATION_MESSAGE_PATH  where the outcome is written as JSON (/dev/termination-log)
  JOB_COMPLETION_INDEX           which shard this process is (0)
  WRPO_SCRATCH                   where copies of what is in S3 are kept (TMPDIR or /tmp)
  WRPO_STORAGE_PATIENCE_SECONDS  how long S3 may be unreachable before the stage gives up (300)
  AWS_...                        credentials and AWS_CA_BUNDLE for S3, as for all AWS tools
  AWS_ENDPOINT_URL               the S3 server, for tools; a stage is told by its configuration
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


@click.command(name="wrpo-engine", help=_HELP, context_settings={"max_content_width": 120})
@click.argument("stage", type=click.Choice([kind.value for kind in StageKind]), metavar="STAGE")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The stage's JSON configuration (wrpo_engine.config.StageConfig).",
)
@click.version_option(__version__, prog_name="wrpo-engine")
def command(stage: str, config_path: Path) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    prepare_environment(os.environ)
    stop = StopRequest()
    install_signal_handlers(stop)
    return run(StageKind(stage), config_path, os.environ, stop=stop)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and arguments[0] in TOOLS:
        prepare_environment(os.environ)
        sys.exit(importlib.import_module(TOOLS[arguments[0]]).main(arguments[1:]))
    try:
        code = command.main(arguments, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        code = ExitCode.INTERRUPTED
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
