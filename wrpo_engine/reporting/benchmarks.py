"""The table of systems on benchmarks as the report shows it: texts and charts from benchmarks.json. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wrpo_engine.reporting import charts

_NOTES: tuple[tuple[frozenset[str], str], ...] = (
    (
        frozenset({"LC", "LC-minimal"}),
        (
            "LC is the length-controlled win rate; its interval refits the regression in each resample. Only the judge "
            "of AlpacaEval-2 gives AlpacaEval-2's LC. LC-minimal has no regulariser and is another number."
        ),
    ),
    (
        frozenset({"SC"}),
        "SC is Arena-Hard v2.0's style-controlled score: that of answers with the baseline's length and Markdown.",
    ),
)
"""Forms of a controlled score, and what they mean."""

Json = Mapping[str, Any]
MARK = "†"
"""Next to a score by the reward that trained or selected the system."""
_KINDS = {
    "AlpacaEval2": "AlpacaEval-2",
    "ArenaHard": "Arena-Hard v0.1",
    "ArenaHardV2": "Arena-Hard v2.0",
    "MTBench": "MT-Bench",
    "HeldOutReward": "held-out prompts",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Head of a column: what is measured, and who judges."""

    benchmark: str
    judge: str
    notes: tuple[str, ...]
    """Unit, items, share of invalid verdicts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Texts of a cell, the first one in bold."""

    score: str
    lines: tuple[str, ...]
    mark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One system."""

    label: str
    about: tuple[str, ...]
    """Its form, members and choices."""
    scores: tuple[Score | None, ...]
    """By column; None where the system has no valid verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Win rates between systems in one column."""

    title: str
    labels: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarksView:
    """All that the report shows of benchmarks."""

    heads: tuple[Head, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    details: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
    """(title, rows with their head) of each column: counts, lengths, turns, places."""
    matrices: tuple[Matrix, ...]
    agreement: tuple[str, ...]


def view_of(content: Json) -> BenchmarksView:
    """Return the view of benchmarks.json."""
    labels = {system["name"]: system["label"] for system in content["systems"]}
    columns: Sequence[Json] = content["columns"]
    return BenchmarksView(
        heads=tuple(_head(column) for column in columns),
        lines=tuple(
            Line(
                label=system["label"],
                about=_about(system, labels),
                scores=tuple(_score(column, system["name"]) for column in columns),
            )
            for system in content["systems"]
        ),
        notes=_notes(content, labels),
        details=tuple((title_of(column), _details(column, labels)) for column in columns),
        matrices=tuple(
            Matrix(
                title=f"{title_of(column)}, {column['common_items']} common items",
                labels=tuple(labels[name] for name in column["win_rates"]["systems"]),
                rows=tuple(
                    tuple("" if rate is None else f"{rate:.0%}" for rate in row) for row in column["win_rates"]["rates"]
                ),
            )
            for column in columns
            if len(column["win_rates"]["systems"]) > 1
        ),
        agreement=tuple(_agreement(entry) for entry in content["agreement"]),
    )


def figures_of(content: Json) -> list[str]:
    """Return a chart of scores and one of scores by length for each column."""
    labels = {system["name"]: system["label"] for system in content["systems"]}
    made = []
    for column in content["columns"]:
        shown = [cell for cell in column["cells"] if cell["score"] is not None]
        title = title_of(column)
        made.append(
            charts.interval_chart(
                {
                    labels[cell["system"]]: (cell["score"], cell["interval"]["low"], cell["interval"]["high"])
                    for cell in shown
                },
                title=title,
            )
        )
        points = {
            labels[cell["system"]]: (cell["answers"]["characters"], cell["score"])
            for cell in shown
            if "characters" in cell["answers"]
        }
        if len(points) > 1:
            made.append(
                charts.point_chart(
                    points, title=f"{title}: score by length", x="mean characters of an answer", y=column["unit"]
                )
            )
    return [svg for svg in made if svg is not None]


def title_of(column: Json) -> str:
    """Return the name of a column."""
    return f"{column['benchmark']} by {column['judge']}"


def judge_of(column: Json) -> str:
    """Return who judges: the model with what affects its verdicts, or the reward."""
    about: Json = column["identity"]
    if column["by"] == "reward":
        return f"reward {about.get('name') or about.get('function') or about.get('model') or column['judge']}"
    model = about.get("model", column["judge"])
    served = about.get("serve_reward")
    if isinstance(served, Mapping):
        model = f"reward {served.get('name') or served.get('function')} as a judge"
    settings = [str(about[name]) for name in ("protocol", "mode") if about.get(name)]
    if about.get("temperature") is not None:
        settings.append(f"temperature {about['temperature']:g}")
    return f"judge {model}" + (f" ({', '.join(settings)})" if settings else "")


def interval_text(interval: Json | None) -> str:
    """Return the bounds of an interval."""
    return "" if interval is None else f"{value_text(interval['low'])} to {value_text(interval['high'])}"


def value_text(value: float) -> str:
    """Return a score: two decimals from 10 on, else four digits that count."""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"


def p_text(value: float) -> str:
    """Return a p-value, a small one as a bound."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _head(column: Json) -> Head:
    kind = _KINDS.get(column["kind"])
    name = column["benchmark"]
    shares = [cell["invalid_share"] for cell in column["cells"]]
    notes = [
        {"%": "win rate in %", "points": "points from 1 to 10", "reward": "mean reward"}[column["unit"]],
        f"{column['items']:,} items",
    ]
    if column["by"] == "judge":
        notes.append(f"invalid {_range(shares)}")
    if column["baseline_answers"]:
        notes.append(f"against {column['baseline_answers']}")
    if column["identities_differ"]:
        notes.append("the judge's settings differ between systems")
    return Head(
        benchmark=name if kind is None or kind == name else f"{name} ({kind})",
        judge=judge_of(column),
        notes=tuple(notes),
    )


def _range(shares: Sequence[float]) -> str:
    low, high = min(shares), max(shares)
    return f"{high:.1%}" if low == high else f"{low:.1%} to {high:.1%}"


def _about(system: Json, labels: Mapping[str, str]) -> tuple[str, ...]:
    lines = []
    if system["form"] != "Model":
        members = ", ".join(labels.get(name, name) for name in system["members"])
        lines.append(f"{system['form'].lower()} of {members}" if members else system["form"].lower())
    lines += [f"{name}: {value}" for name, value in system["choices"].items()]
    if system["judged_only_by_own_reward"]:
        lines.append(f"{MARK} judged only by the reward that trained or selected it")
    return tuple(lines)


def _score(column: Json, system: str) -> Score | None:
    cell = next((each for each in column["cells"] if each["system"] == system), None)
    if cell is None or cell["score"] is None:
        return None
    lines = [interval_text(cell["interval"])]
    controlled = cell["length_controlled"]
    if controlled is not None:
        bounds = interval_text(controlled["interval"])
        lines.append(f"{controlled['form']} {value_text(controlled['score'])}" + (f" ({bounds})" if bounds else ""))
    if cell["items"] != column["items"]:
        lines.append(f"{cell['items']:,} judged")
    if cell["common"] is not None:
        lines.append(
            f"{value_text(cell['common']['score'])} ({interval_text(cell['common']['interval'])}) on the "
            f"{cell['common']['items']:,} common"
        )
    if cell["difference"] is not None:
        apart = cell["difference"]
        low, high = apart["interval"]["low"], apart["interval"]["high"]
        lines.append(f"{apart['mean']:+.3g} ({low:+.3g} to {high:+.3g}), {p_text(cell['adjusted_p'])}")
    return Score(score=value_text(cell["score"]), lines=tuple(lines), mark=MARK if cell["judged_by_own_reward"] else "")


def controlled_notes(forms: Collection[str]) -> list[str]:
    """Return what the forms of controlled scores in a table mean."""
    return [note for known, note in _NOTES if known & set(forms)]


def _notes(content: Json, labels: Mapping[str, str]) -> tuple[str, ...]:
    columns: Sequence[Json] = content["columns"]
    starts = sorted({labels[column["baseline"]] for column in columns if column["baseline"]})
    intervals = (
        f"Intervals are 95 % percentile bootstraps over items with {content['resamples']:,} resamples. Signed numbers "
        f"are differences from {', '.join(starts)}, paired on the common items. p is one-sided, adjusted by Holm's "
        "procedure over the column."
    )
    found = [intervals]
    cells = [cell for column in columns for cell in column["cells"]]
    if any(cell["common"] is not None for cell in cells):
        found.append("Where systems were judged on different items, the score on the common ones is shown as well.")
    controlled = [cell["length_controlled"] for cell in cells]
    found += controlled_notes([each["form"] for each in controlled if each is not None])
    if any(cell["judged_by_own_reward"] for cell in cells):
        found.append(
            f"{MARK} scored by the reward that trained or selected the system: this shows what was optimised, not what "
            "people prefer."
        )
    smallest = [cell["detectable"] for cell in cells if cell["detectable"] is not None]
    if smallest:
        found.append("The tables below name the smallest difference that each column detects with a power of 80 %.")
    return tuple(found)


_COUNTS = ("unparsable", "refused", "too_long", "failed")


def _details(column: Json, labels: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Return a table of one column, its head first; columns without a value are left out."""
    names = ["system", "judged", "characters", "tokens", "truncated", "empty"]
    names += [name.replace("_", " ") for name in _COUNTS]
    turns = max((len(cell["turns"]) for cell in column["cells"]), default=0)
    names += [f"turn {turn + 1}" for turn in range(turns)]
    names += ["advantage of the first place", "contradicted", "detectable"]
    rows = [_detail(cell, labels, turns) for cell in column["cells"]]
    kept = [index for index in range(len(names)) if any(row[index] not in ("", "0") for row in rows)]
    return tuple(tuple(row[index] for index in kept) for row in (names, *rows))


def _detail(cell: Json, labels: Mapping[str, str], turns: int) -> list[str]:
    answers, place = cell["answers"], cell["position"] or {}
    by_turn = [value_text(turn["score"]) for turn in cell["turns"]]
    return [
        labels[cell["system"]],
        f"{cell['items']:,}",
        *(f"{answers[name]:,.0f}" if name in answers else "" for name in ("characters", "tokens")),
        *(f"{answers.get(name, 0):,.0f}" for name in ("truncated", "empty")),
        *(f"{cell['counts'].get(name, 0):,.0f}" for name in _COUNTS),
        *by_turn,
        *[""] * (turns - len(by_turn)),
        f"{place['advantage']:+.3g}" if "advantage" in place else "",
        f"{place['contradicted']:.0%}" if "contradicted" in place else "",
        "" if cell["detectable"] is None else f"{cell['detectable']:.3g}",
    ]


def _agreement(entry: Json) -> str:
    first, second = entry["judges"]
    about = f"{entry['benchmark']}, {first} and {second}: "
    if entry["kendall"] is None:
        return about + "no order of systems to compare."
    bounds = "" if entry["interval"] is None else f" ({interval_text(entry['interval'])})"
    share = "" if entry["share"] is None else f"; {entry['share']:.0%} of {entry['pairs']:,} pairs of answers alike"
    return (
        f"{about}Kendall's tau {value_text(entry['kendall'])}{bounds} over {entry['systems']} systems on "
        f"{entry['items']:,} items{share}."
    )
