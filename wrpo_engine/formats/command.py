"""`wrpo-engine convert`: triples from one format to another."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import click

from wrpo_engine.config import ExitCode
from wrpo_engine.errors import DataError
from wrpo_engine.formats.location import Locator
from wrpo_engine.formats.reading import read_tables, triples_of
from wrpo_engine.formats.rows import Reading, is_echo
from wrpo_engine.formats.writing import Format, write_artifact, write_output
from wrpo_engine.process.command_line import run_command

_HELP = """Read triples from IN and write them to OUT in another format.

\b
IN is one of
  a file         .parquet, .jsonl, .json, .csv, .tsv
  a directory    of such files, or one that `datasets` saved
  an artifact    its directory, or its address with --storage
  storage://PATH below --storage; s3://BUCKET/PATH with credentials in the environment
  a hub id       OWNER/NAME

\b
OUT is a path, storage://PATH below --storage, or s3://BUCKET/PATH; existing data are not replaced.

\b
Rows that are read
  {"prompt_id", "prompt": {"role", "content"}, "chosen": [y_ws, y_wt], "rejected": [y_l]}   published format
  {"prompt", "target_chosen", "rejected", "source_chosen", ...}                             the engine's
  {"prompt", "chosen", "rejected"}           texts, messages or conversations
  {"chosen", "rejected"}                     conversations that begin with the prompt, or HH-RLHF's dialogues as text
  {"question", "chosen", "rejected"}         Orca pairs
  {"conversations", "chosen", "rejected"}    ShareGPT ranking (from, value); `messages` likewise
  {"instruction", "input", "chosen", "rejected"}   Alpaca pairs; `output: [chosen, rejected]` likewise
Messages have role and content, or from and value; roles are user or human, assistant, gpt, model or bot, system.

A row holds one user turn and its responses. A row with more before the responses is an error that names it: a system
turn, earlier turns, or the beginning of the response; --history keep keeps turns as the column `history`, as rows of
conversations of the engine have it. So is a row whose columns ask different things. Without prompt_id the id is the
sha256 of the prompt.

\b
--to
  published  JSON lines in the published format; scores are not part of it
  jsonl      JSON lines with the engine's columns
  parquet    the same as a Parquet file
  datasets   a directory that datasets.load_from_disk reads: published format and the other columns
  artifact   OUT is a storage (directory or s3://BUCKET/PREFIX): the rows become an artifact that the train stage's
             role `triples` reads; its address is printed

\b
Examples:
  wrpo-engine convert storage/curate-triples/0123456789abcdef triples.jsonl --to published
  wrpo-engine convert owner/preferences storage --to artifact
"""


@click.command(name="wrpo-engine convert", help=_HELP, context_settings={"max_content_width": 120})
@click.argument("source", metavar="IN")
@click.argument("output", metavar="OUT")
@click.option("--to", "kind", type=click.Choice([kind.value for kind in Format]), required=True, help="See above.")
@click.option("--storage", metavar="DIR|s3://BUCKET/PREFIX", help="Storage that addresses and storage:// refer to.")
@click.option(
    "--split", default="train", show_default=True, help="Split of a hub data set, a directory or a DatasetDict."
)
@click.option("--config", help="Configuration of a hub data set or of a directory's dataset card.")
@click.option(
    "--system",
    type=click.Choice(["refuse", "prepend"]),
    default="refuse",
    show_default=True,
    help="A system turn is an error (see --history), or becomes the beginning of the prompt.",
)
@click.option(
    "--history",
    type=click.Choice(["refuse", "keep"]),
    default="refuse",
    show_default=True,
    help="Turns before the last user turn, a system turn too, are an error, or become the row's history.",
)
@click.option(
    "--bad-rows",
    type=click.Choice(["refuse", "skip"]),
    default="refuse",
    show_default=True,
    help="The first unusable row is an error, or all unusable rows are left out and counted.",
)
def command(
    source: str,
    output: str,
    kind: str,
    storage: str | None,
    split: str,
    config: str | None,
    system: str,
    history: str,
    bad_rows: str,
) -> int:
    """Convert the rows of `source`, write them to `output`, and return the exit code."""
    locator = Locator(storage, os.environ, lambda: datetime.now(UTC))
    found = locator.artifact(source)
    place = str(found[0].file("triples.parquet")) if found else locator.local(source)
    reading = Reading(prepend_system=system == "prepend", keep_history=history == "keep", skip_bad=bad_rows == "skip")
    triples = triples_of(read_tables(place, split=split, config=config), reading)
    table = triples.table
    if not table.height:
        counted = _counted(triples.skipped)
        raise DataError(f"{source}: no row can be used; {counted}", code="DatasetEmpty", hint="See --bad-rows refuse.")
    if kind == Format.ARTIFACT:
        store = Locator(None, os.environ, lambda: datetime.now(UTC)).store(output)
        artifact = write_artifact(table, store)
        click.echo(f"{artifact.ref.stage}/{artifact.ref.hash}")
    else:
        write_output(table, locator.output(output), Format(kind))
    click.echo(f"{table.height} rows", err=True)
    if triples.skipped:
        click.echo(f"left out: {_counted(triples.skipped)}", err=True)
    if echoes := table.filter(is_echo("source_chosen") | is_echo("target_chosen")).height:
        click.echo(f"warning: in {echoes} rows a preferred response is the prompt; `wrpo lint` names them", err=True)
    return ExitCode.OK


def _counted(skipped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} rows {reason}" for reason, count in sorted(skipped.items()))


def main(arguments: Sequence[str]) -> int:
    """Run the command; every foreseen error is one line with a hint."""
    return run_command(command, arguments, prog_name="wrpo-engine convert")
