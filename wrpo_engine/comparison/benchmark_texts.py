"""Texts of a comparison's benchmarks: columns, notes and numbers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from wrpo_engine.comparison.benchmarks import BenchmarkTable, Facts, JudgesCompared
from wrpo_engine.comparison.columns import Cell, Scored
from wrpo_engine.comparison.published import published_note, published_row
from wrpo_engine.comparison.statistics import Interval
from wrpo_engine.reporting.benchmarks import controlled_notes, judge_of, p_text, value_text

_DASH = "-"
_WIN_RATE = {"%": "WR", "points": "overall", "reward": "reward"}


@dataclass(frozen=True, kw_only=True)
class TextColumn:
    """A column of the table: its head and its text in each row; a dash for none."""

    head: str
    texts: tuple[str, ...]
    is_main: bool = False
    """Whether a terminal shows it."""


def columns_of(tables: Sequence[BenchmarkTable], rows: Sequence[str], *, published: bool) -> list[TextColumn]:
    """Return the columns of all benchmarks; those without a text are left out."""
    made = []
    for table in tables:
        name = prefix_of(table, tables)
        for head, is_main, text in _COLUMNS:
            shown = head if head != "score" else _WIN_RATE[table.scale.name]
            made.append(_column(table, f"{name} {shown}", rows, text, is_main=is_main))
        turns = max((len(facts.turns) for facts in table.facts.values()), default=0)
        made += [_column(table, f"{name} T{turn + 1}", rows, _turn(turn)) for turn in range(turns)]
        if published:
            made.append(TextColumn(head=f"{name} paper", texts=tuple(_paper(table, row) for row in rows)))
    return [column for column in made if set(column.texts) != {_DASH}]


def prefix_of(table: BenchmarkTable, tables: Sequence[BenchmarkTable]) -> str:
    """Return the name of a benchmark, with the judge where it has several."""
    benchmark, judge = table.key
    several = sum(other.key[0] == benchmark for other in tables) > 1
    return f"{benchmark} by {judge}" if several else benchmark


def notes_of(
    tables: Sequence[BenchmarkTable], agreements: Sequence[JudgesCompared], rows: Sequence[str], *, published: bool
) -> list[str]:
    """Return who judges each benchmark, what was judged, how judges agree, and notes about the paper's figures."""
    found = [_judge_note(table, rows) for table in tables]
    facts = [each for table in tables for each in table.facts.values()]
    found += controlled_notes([each.length_controlled[0] for each in facts if each.length_controlled])
    found += [_agreement_note(each) for each in agreements]
    if published and tables:
        found += _published_notes(tables, rows)
    return found


def csv_columns(tables: Sequence[BenchmarkTable], row: str, *, published: bool) -> dict[str, object]:
    """Return the numbers of a row in full precision by their column; empty texts for what is unknown."""
    found: dict[str, object] = {}
    for table in tables:
        name = "/".join(table.key)
        values: Mapping[str, object] = dict.fromkeys(_CSV, "")
        if row in table.cells:
            values = _csv(table, row)
        found |= {f"{name}/{column}": value for column, value in values.items()}
        if published:
            found[f"{name}/paper"] = _paper(table, row).replace(_DASH, "")
    return found


def scaled(interval: Interval, factor: float) -> Interval:
    """Return an interval in another unit."""
    return Interval(interval.low * factor, interval.high * factor)


_CSV = (
    *("score", "ci_low", "ci_high", "lc", "lc_low", "lc_high", "sc", "difference", "difference_ci_low"),
    *("difference_ci_high", "p_one_sided", "p_holm", "wins", "losses", "sign_test", "detectable", "judged"),
    *("common_score", "invalid_share", "characters", "tokens", "generated", "read"),
)


def _csv(table: BenchmarkTable, row: str) -> dict[str, object]:
    cell, facts, factor = table.cells[row], table.facts[row], table.scale.factor
    values: dict[str, object] = dict.fromkeys(_CSV, "")
    own = scaled(cell.own.interval, factor)
    values |= {"score": cell.own.score * factor, "ci_low": own.low, "ci_high": own.high, "judged": cell.own.items}
    if facts.length_controlled is not None:
        form, value = facts.length_controlled
        values["sc" if form == "SC" else "lc"] = value
    if cell.length_controlled is not None:
        bounds = scaled(cell.length_controlled.interval, 100)
        values |= {"lc_low": bounds.low, "lc_high": bounds.high}
    apart = cell.difference
    if apart is not None:
        ends = scaled(apart.interval, factor)
        values |= {"difference": apart.mean * factor, "difference_ci_low": ends.low, "difference_ci_high": ends.high}
        values |= {"p_one_sided": apart.not_above, "p_holm": cell.adjusted_p, "sign_test": apart.sign_test}
        values |= {"wins": apart.wins, "losses": apart.losses, "detectable": (cell.detectable or 0.0) * factor}
    if cell.common is not None:
        values["common_score"] = cell.common.score * factor
    values["invalid_share"] = facts.invalid_share
    known = {"characters": facts.characters, "tokens": facts.tokens, "generated": facts.generated, "read": facts.read}
    return values | {name: value for name, value in known.items() if value is not None}


Text = Callable[[BenchmarkTable, Cell, Facts], str]


def _column(table: BenchmarkTable, head: str, rows: Sequence[str], text: Text, *, is_main: bool = False) -> TextColumn:
    texts = tuple(
        text(table, table.cells[row], table.facts[row]) or _DASH if row in table.cells else _DASH for row in rows
    )
    return TextColumn(head=head, texts=texts, is_main=is_main)


def _controlled(head: str, *others: str) -> Text:
    """Return the text of a controlled score whose form is that of the head, or one of others, which are named."""

    def text(_: BenchmarkTable, cell: Cell, facts: Facts) -> str:
        form, value = facts.length_controlled or ("", 0.0)
        if form not in (head, *others):
            return ""
        bounds = "" if cell.length_controlled is None else f" ({_range(cell.length_controlled.interval, 100)})"
        return value_text(value) + bounds + ("" if form == head else f" {form}")

    return text


def _score(table: BenchmarkTable, cell: Cell, facts: Facts) -> str:
    mark = " \N{DAGGER}" if facts.is_marked else ""
    return f"{_scored(cell.own, table.scale.factor)}{mark}"


def _common(table: BenchmarkTable, cell: Cell, _: Facts) -> str:
    return "" if cell.common is None else _scored(cell.common, table.scale.factor)


def _scored(scored: Scored, factor: float) -> str:
    return f"{value_text(scored.score * factor)} ({_range(scored.interval, factor)})"


def _difference(table: BenchmarkTable, cell: Cell, _: Facts) -> str:
    if cell.difference is None or cell.adjusted_p is None:
        return ""
    factor, apart = table.scale.factor, cell.difference
    low, high = apart.interval.low * factor, apart.interval.high * factor
    return f"{apart.mean * factor:+.3g} ({low:+.3g} to {high:+.3g}), {p_text(cell.adjusted_p)}"


def _detectable(table: BenchmarkTable, cell: Cell, _: Facts) -> str:
    return "" if cell.detectable is None else f"{cell.detectable * table.scale.factor:.3g}"


def _turn(turn: int) -> Text:
    def text(_: BenchmarkTable, __: Cell, facts: Facts) -> str:
        return value_text(facts.turns[turn]) if turn < len(facts.turns) else ""

    return text


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


_COLUMNS: tuple[tuple[str, bool, Text], ...] = (
    ("LC", True, _controlled("LC", "LC-minimal")),
    ("SC", True, _controlled("SC")),
    ("score", True, _score),
    ("common", False, _common),
    ("difference", False, _difference),
    ("detectable", False, _detectable),
    ("characters", False, lambda _table, _cell, facts: _count(facts.characters)),
    ("tokens", False, lambda _table, _cell, facts: _count(facts.tokens)),
    ("tokens generated", False, lambda _table, _cell, facts: _count(facts.generated)),
    ("tokens read", False, lambda _table, _cell, facts: _count(facts.read)),
    ("judged", False, lambda _table, cell, _facts: str(cell.own.items)),
    ("invalid", False, lambda table, _cell, facts: f"{facts.invalid_share:.1%}" if _is_judge(table) else ""),
)


def _is_judge(table: BenchmarkTable) -> bool:
    return bool(table.column["by"] == "judge")


def _range(interval: Interval, factor: float) -> str:
    return f"{value_text(interval.low * factor)} to {value_text(interval.high * factor)}"


def _paper(table: BenchmarkTable, row: str) -> str:
    found = published_row(row)
    return (found.text(table.column["kind"]) if found is not None else "") or _DASH


def _judge_note(table: BenchmarkTable, rows: Sequence[str]) -> str:
    shown = [table.facts[row].invalid_share for row in rows if row in table.facts]
    low, high = min(shown), max(shown)
    share = f"{high:.1%}" if low == high else f"{low:.1%} to {high:.1%}"
    invalid = f" Invalid verdicts: {share}." if _is_judge(table) else ""
    mark = (
        " \N{DAGGER} the reward that judges trained or selected the system."
        if any(facts.is_marked for facts in table.facts.values())
        else ""
    )
    return (
        f"{table.key[0]}: {judge_of(table.column)}; {table.column['items']:,} items, {table.common_items:,} of them "
        f"judged for every row. Differences are from {table.baseline}.{invalid}{mark}"
    )


def _agreement_note(compared: JudgesCompared) -> str:
    agreement, (first, second) = compared.agreement, compared.judges
    if agreement.kendall is None:
        return f"{compared.benchmark}, {first} and {second}: no order of systems to compare."
    bounds = "" if agreement.interval is None else f" ({_range(agreement.interval, 1)})"
    pairs = agreement.same + agreement.opposite
    share = "" if agreement.share is None else f"; {agreement.share:.0%} of {pairs:,} pairs of answers alike"
    return (
        f"{compared.benchmark}, {first} and {second}: Kendall's tau {value_text(agreement.kendall)}{bounds} over "
        f"{agreement.systems} systems on {agreement.items:,} items{share}."
    )


def _published_notes(tables: Sequence[BenchmarkTable], rows: Sequence[str]) -> list[str]:
    kinds = dict.fromkeys(table.column["kind"] for table in tables)
    about = (
        "The paper's figures are LC / WR for AlpacaEval-2. They are of its models and judges; a row is theirs only if "
        "models, data and judge are."
    )
    found = [about]
    found += [note for kind in kinds if (note := published_note(kind))]
    for row in rows:
        published = published_row(row)
        if published is not None and any(published.text(kind) for kind in kinds):
            found += [f"The paper on {row}: {note}" for note in published.notes]
    return found
