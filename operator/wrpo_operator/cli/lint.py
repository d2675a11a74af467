"""`wrpo lint`: the engine's checks of training data, in a separate process."""

from __future__ import annotations

import click

from wrpo_operator.cli.engine import run_tool


@click.command("lint", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="DATA")
def lint_command(arguments: tuple[str, ...]) -> None:
    """Check training data for faults: an artifact of prepare, curate-sft or curate-triples, or a file of triples.

    It finds double BOS and end-of-turn tokens, template tokens in texts, empty and truncated responses, equal pairs
    and duplicates. It also finds wrong or extreme score gaps, and prompts shared by the SFT, preference and evaluation
    sets. The exit code is 1 if there are errors, 0 if there are none, 64 or above if DATA cannot be read.

    \b
    Options:
      --storage DIR|s3://BUCKET/PREFIX  what addresses (STAGE/HASH) and storage://PATH refer to
      --split NAME                      split of a hub data set or a saved DatasetDict [train]
      --sft, --preference, --evaluation FILE
                                        prompts to compare with; default: those of the artifact
      --tokenizer DIR|ID                the target's tokenizer; its special tokens are checked
      --near FLOAT                      similarity from which prompts are near duplicates [0.7]
      --max-examples N                  rows named per rule [3]
      --json                            print one JSON object

    \b
    Examples:
      wrpo lint storage/curate-triples/0123456789abcdef
      wrpo lint triples.jsonl --evaluation questions.jsonl --json
    """  # noqa: D301  # click's mark for lines to keep
    raise SystemExit(run_tool("lint", arguments))
