"""`wrpo-engine judge-server`: a judge that a reward decides for."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from wrpo_engine.config import ArtifactRef, RewardModel
from wrpo_engine.errors import ConfigError, UsageError
from wrpo_engine.formats.location import Locator
from wrpo_engine.judging.server.batching import BatchingScorer
from wrpo_engine.judging.server.http import JudgeServer
from wrpo_engine.judging.server.opinions import Scale
from wrpo_engine.judging.tool_context import tool_config, tool_context
from wrpo_engine.process.command_line import run_command
from wrpo_engine.scoring.load import Reading, load_scorer
from wrpo_engine.scoring.rewards import Scorer

log = logging.getLogger("wrpo_engine")

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_HELP = """Serve a reward as a judge with the API of OpenAI: POST /v1/chat/completions.

It reads the prompt and the answers from the judge prompts of AlpacaEval, Arena-Hard and MT-Bench and answers as these
ask for: m or M with log probabilities, a label from A>>B to B>>A, or a rating. This is the reward's opinion, not that
of a language model: label results with its name.

\b
REWARD is one of
  a directory, storage://PATH below --storage, or a hub id   of a reward model
  MODULE:FUNCTION                                            (prompts, responses) -> numbers
  http(s)://..                                               a reward server, with --endpoint-model

\b
Example:
  wrpo-engine judge-server --reward Skywork/Skywork-Reward-V2-Llama-3.1-8B --port 8001
"""


@click.command(name="judge-server", help=_HELP, context_settings={"max_content_width": 120})
@click.option("--reward", required=True, help="The reward.")
@click.option("--endpoint-model", help="Model name that a reward server is asked for.")
@click.option("--name", help="Model name that clients must ask for. Default: REWARD.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on. There are no keys.")
@click.option("--port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="0: a free one.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Margin of rewards that counts as 1.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="JSON list of rewards of typical answers: MT-Bench's rating is 1 + 9 times the quantile among them. Default: "
    "the sigmoid of the reward divided by the temperature.",
)
@click.option("--storage", metavar="DIR|s3://BUCKET/PREFIX", help="Storage that storage:// refers to.")
@click.option("--max-length", type=click.IntRange(min=1), default=4096, show_default=True, help="Tokens of a pair.")
@click.option("--batch-tokens", type=click.IntRange(min=1), default=16384, show_default=True, help="Tokens of a batch.")
def command(
    reward: str,
    endpoint_model: str | None,
    name: str | None,
    host: str,
    port: int,
    temperature: float,
    calibration: Path | None,
    storage: str | None,
    max_length: int,
    batch_tokens: int,
) -> int:
    """Serve until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    scale = Scale(temperature=_positive(temperature), calibration=read_calibration(calibration) if calibration else ())
    model = reward_model(reward, endpoint_model)
    scorer = make_scorer(model, storage, os.environ, max_length=max_length, batch_tokens=batch_tokens)
    try:
        server = JudgeServer((host, port), model=name or reward, scorer=BatchingScorer(scorer), scale=scale)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="Choose another --port; 0 takes a free one."
        ) from error
    with server:
        _serve(server, host)
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    return run_command(command, arguments, prog_name="wrpo-engine judge-server")


def _serve(server: JudgeServer, host: str) -> None:
    def stop(*_: object) -> None:
        # shutdown waits for the loop that this handler interrupts.
        threading.Thread(target=server.shutdown, daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    log.info("judge %s: http://%s:%d/v1", server.model, host, server.server_port)
    server.serve_forever(poll_interval=0.1)


def reward_model(reward: str, endpoint_model: str | None) -> RewardModel:
    """Return the reward that a command line names."""
    if reward.startswith(("http://", "https://")):
        return RewardModel(endpoint=reward, endpoint_model=endpoint_model)
    if _FUNCTION.fullmatch(reward):
        return RewardModel(function=reward)
    path = Path(reward)
    return RewardModel(name=str(path.resolve()) if path.is_dir() else reward)


def make_scorer(
    reward: RewardModel, storage: str | None, environ: Mapping[str, str], *, max_length: int, batch_tokens: int
) -> Scorer:
    """Load the reward; storage://PATH is below `storage`, else below the current directory."""
    store = Locator(storage or str(Path.cwd()), environ, lambda: datetime.now(UTC)).store()
    params = {"stage": "score", "reward": reward.model_dump(mode="json", exclude_none=True)}
    output = ArtifactRef(stage="score", hash="0" * 16)
    ctx = tool_context(tool_config("judge-server", params, output, {}), store, environ)
    return load_scorer(reward, ctx, Reading(max_length=max_length, batch_tokens=batch_tokens))


def _positive(temperature: float) -> float:
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UsageError(
            f"--temperature is {temperature:g}: it must be above 0", hint="1 keeps the reward's own scale."
        )
    return temperature


def read_calibration(path: Path) -> list[float]:
    """Return the rewards in a file, sorted; ConfigError if it holds anything else."""
    try:
        numbers = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--calibration {path} cannot be read: {error}", hint="Write a JSON list of numbers."
        ) from error
    is_list = isinstance(numbers, list) and numbers
    if not is_list or not all(
        isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each) for each in numbers
    ):
        raise ConfigError("--calibration", str(path), "it must be a JSON list of numbers", "Write e.g. [-1.5, 0.2, 3].")
    return sorted(float(each) for each in numbers)
