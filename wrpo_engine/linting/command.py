"""`wrpo-engine lint`, which is also `wrpo lint`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wrpo_engine.config import ExitCode
from wrpo_engine.formats.location import Locator
from wrpo_engine.linting.checks import ModelTokens, run_checks
from wrpo_engine.linting.findings import Finding, Limits, Severity, has_errors
from wrpo_engine.linting.inputs import Subject, open_subject
from wrpo_engine.process.command_line import run_command

FOUND_ERRORS = 1
_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}
_HELP = """Check training data for faults.

Faults of a row are double BOS and end-of-turn tokens, template tokens in texts, empty or truncated responses, equal
pairs, and wrong or extreme score gaps. Faults of a set are duplicates, and prompts that occur in two of the SFT,
preference and evaluation sets (equal ones, and near duplicates by word trigrams).

\b
DATA is one of
  an artifact  of prepare, curate-sft or curate-triples: its directory, or its address with --storage. The prompts it
               was made from are compared with it.
  a file       .parquet, .jsonl, .json, a directory of such files, or one that `datasets` saved: triples in the
               formats that `wrpo-engine convert` reads, SFT rows (prompt, response), prompts, or triples as token ids
  storage://PATH below --storage, s3://BUCKET/PATH, a hub id

\b
Exit code: 0 nothing of severity error, 1 errors were found; 64 and above: DATA cannot be read.

\b
Examples:
  wrpo lint storage/curate-triples/0123456789abcdef
  wrpo lint curate-triples/0123456789abcdef --storage s3://bucket/experiments
  wrpo lint triples.jsonl --evaluation questions.jsonl --json
"""


@click.command(name="lint", help=_HELP, context_settings={"max_content_width": 120})
@click.argument("data")
@click.option("--storage", metavar="DIR|s3://BUCKET/PREFIX", help="Storage that addresses and storage:// refer to.")
@click.option("--split", default="train", show_default=True, help="Split of a hub data set or a saved DatasetDict.")
@click.option("--sft", metavar="FILE", help="Prompts of SFT, to compare with.")
@click.option("--preference", metavar="FILE", help="Prompts of preference training, to compare with.")
@click.option("--evaluation", metavar="FILE", help="Prompts of the evaluation, to compare with.")
@click.option("--tokenizer", metavar="DIR|ID", help="The target's tokenizer: its own special tokens are looked for.")
@click.option("--near", type=click.FloatRange(0.3, 1.0), default=0.7, show_default=True, help="Near-duplicate limit.")
@click.option("--max-examples", type=click.IntRange(min=0), default=3, show_default=True, help="Rows named per rule.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    data: str,
    storage: str | None,
    split: str,
    tokenizer: str | None,
    near: float,
    max_examples: int,
    as_json: bool,
    **others: str | None,
) -> int:
    """Check the data, print the findings, and return the exit code: 1 if there are errors."""
    locator = Locator(storage, os.environ, lambda: datetime.now(UTC))
    subject = open_subject(data, locator, split=split, others={name: place for name, place in others.items() if place})
    model = load_tokens(locator.local(tokenizer)) if tokenizer else ModelTokens()
    findings = run_checks(subject, Limits(max_examples=max_examples, near=near), model)
    if as_json:
        click.echo(json.dumps(as_object(subject, findings), indent=1, ensure_ascii=False))
    else:
        show(subject, findings, Console(highlight=False))
    return FOUND_ERRORS if has_errors(findings) else ExitCode.OK


def load_tokens(place: str) -> ModelTokens:
    """Return the special tokens of a tokenizer; the end of turn is the chat template's, if there is one."""
    from wrpo_engine.hub.models import read_tokenizer
    from wrpo_engine.text.chat import check_template, or_error, probable_end_of_turn
    from wrpo_engine.text.templates import template_of
    from wrpo_engine.text.turns import encoder_of

    tokenizer = read_tokenizer(place, field="--tokenizer", identity=place)
    template = or_error(lambda: template_of(tokenizer), field="--tokenizer")
    if template is not None:
        check_template(tokenizer, field="--tokenizer")
    eos = probable_end_of_turn(tokenizer)
    return ModelTokens(
        bos=tokenizer.bos_token_id,
        eos=eos,
        bos_text=tokenizer.bos_token,
        eos_text=tokenizer.convert_ids_to_tokens(eos) if eos is not None else None,
        special=sorted(encoder_of(tokenizer, template).tokens),
    )


def as_object(subject: Subject, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return what --json prints."""
    counts = {f"{severity.value}s": sum(each.severity is severity for each in findings) for severity in Severity}
    return {
        "data": subject.location,
        "kind": subject.kind.value,
        "rows": subject.num_rows,
        "sets": {name: rows.height for name, rows in subject.sets.items()},
        **counts,
        "findings": [each.to_json() for each in findings],
    }


def show(subject: Subject, findings: Sequence[Finding], console: Console) -> None:
    """Print a table of the rules and the rows that they found; texts are shown as they are, never as markup."""
    console.print(Text(f"{subject.location}: {subject.num_rows:,} rows, {subject.kind.value}"))
    if len(subject.sets) > 1:
        sizes = ", ".join(f"{name} {rows.height:,}" for name, rows in subject.sets.items())
        console.print(Text(f"compared prompts: {sizes}"))
    if not findings:
        console.print("nothing found")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("severity", "rule", "rows", "what"):
        table.add_column(name, justify="right" if name == "rows" else "left", overflow="fold")
    for each in findings:
        table.add_row(
            Text(each.severity.value, style=_STYLES[each.severity]),
            Text(each.rule),
            f"{each.count:,}" if each.count else "",
            Text(each.message),
        )
        for example in each.examples:
            place = f"row {example.row}" + (f" ({example.prompt_id[:12]})" if example.prompt_id else "")
            table.add_row("", "", "", Text(f"  {place}: {example.text}", style="dim"))
    console.print(table)


def main(arguments: Sequence[str]) -> int:
    """Run the command; every foreseen error is one line with a hint."""
    return run_command(command, arguments, prog_name="wrpo lint")
