"""The page docs/study.md, made from the saved result of a run. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.common.results import Table, machine_of
from benchmarks.study.claims import (
    MARGINS,
    Finding,
    Runs,
    SlopeStep,
    check_claims,
    judged_scores,
    known_scores,
    slope_steps,
    slopes_of,
)
from wrpo_engine.comparison.statistics import Difference, Interval, bootstrap, interval_of
from wrpo_engine.quickstart.known_reward import OPTIMUM

JUDGE = "minilm"
_SEED = 42
_HEAD = """# The miniature study

`make study` runs the whole method on small real models and tests what the paper claims. This page is generated from the
last run: `make study-page` writes it again. [The sweep](../examples/study.yaml) explains models, prompts and sizes.
"""
_METHOD = """## Meaning of the figures

The rule reward is the mean of four parts, each from 0 to 1: a length of 5 to 14 words, no repeated word, a mark at the
end, and a word of the prompt's topic. Its highest score is 1. Training uses this reward only. The small reward model
scores the same responses in addition, and says little about quality.

Intervals are 95 % bootstrap intervals over seeds and held-out prompts. All rows have the same prompts, so that
differences are paired. A p-value is one-sided, by Holm's procedure over all claims of a table. A claim appears if it is
below 0.05."""
_NO_RUN = """No run is recorded yet. `make study` takes about an hour on two cores, `make study-quick` about ten
minutes. Each builds its models first if they do not exist, which takes about five minutes.
"""


def page(result: Mapping[str, Any] | None) -> str:
    """Return the text of the page; `result` is what `benchmarks.study` saved, None without a run."""
    if result is None:
        return f"{_HEAD}\n{_NO_RUN}"
    comparison = result["comparison"]
    scores = known_scores(comparison)
    judged = judged_scores(comparison, JUDGE)
    steps = slope_steps(slopes_of(result["margins"], result["runs"]))
    parts = [
        _HEAD.rstrip(),
        _run(result, scores),
        _METHOD,
        "## Results",
        _rows(scores, judged).markdown(),
        "## Claims",
        _claims("By the rule reward", check_claims(scores), scores),
        _claims("By the small reward model", check_claims(judged), judged),
        "## Slopes of the margin",
        _slopes(slopes_of(result["margins"], result["runs"]), steps),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _run(result: Mapping[str, Any], scores: Mapping[str, Runs]) -> str:
    prompts = len(next(iter(scores.values()))[0]) if scores else 0
    seeds = max((len(runs) for runs in result["runs"].values()), default=0)
    commands = "\n".join(result["commands"])
    unused = [f"`{name}`" for name in result["missing"]]
    missing = f"\n\nThese variants did not succeed and have no row: {', '.join(unused)}." if unused else ""
    return (
        f"## The run\n\nMeasured {machine_of(result).line}. The run took {_duration(result['seconds'])}, with "
        f"{prompts} held-out prompts and {_count(seeds, 'training seed')}. Commands:\n\n```\n{commands}\n```{missing}"
    )


def _rows(scores: Mapping[str, Runs], judged: Mapping[str, Runs]) -> Table:
    own, other = _means(scores), _means(judged)
    return Table(
        title="Mean reward on held-out prompts",
        columns=("row", "runs", f"rule reward (highest {OPTIMUM:g})", "left to the highest", "small reward model"),
        rows=[
            (
                ", ".join(f"`{name}`" for name in names),
                str(len(scores[names[0]])),
                _mean(*own[names[0]]),
                f"{OPTIMUM - own[names[0]][0]:.3f}",
                _mean(*other[names[0]]) if names[0] in other else "-",
            )
            for names in _equal_rows(scores, judged)
        ],
    )


def _equal_rows(scores: Mapping[str, Runs], judged: Mapping[str, Runs]) -> list[list[str]]:
    """Return the names of the rows, together those with equal scores: variants share a model that is made once."""
    groups: list[list[str]] = []
    for name in scores:
        like = next((g for g in groups if (scores[g[0]], judged.get(g[0])) == (scores[name], judged.get(name))), None)
        if like is None:
            groups.append([name])
        else:
            like.append(name)
    return groups


def _means(scores: Mapping[str, Runs]) -> dict[str, tuple[float, Interval]]:
    if not scores:
        return {}
    draws = bootstrap(list(scores.values()), seed=_SEED)
    return {
        name: (fmean(value for run in runs for value in run), interval_of(draws[:, index]))
        for index, (name, runs) in enumerate(scores.items())
    }


def _mean(mean: float, interval: Interval) -> str:
    return f"{mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _claims(title: str, tested: Sequence[Finding], scores: Mapping[str, Runs]) -> str:
    if not tested:
        return ""
    table = Table(
        title=title,
        columns=("claim", "difference", "p", "detectable", "result"),
        rows=[
            (
                f"{each.claim.topic} (`{each.claim.higher}` above `{each.claim.lower}`)",
                _difference(each.difference),
                _p(each.adjusted_p),
                f"{each.detectable:.4f}",
                "appears" if each.is_shown else ("reversed" if each.is_reversed else "does not appear"),
            )
            for each in tested
        ],
    )
    open_ones = [f"- {each.claim.topic}: {why(each)}{_after_sft(each, scores)}" for each in tested if not each.is_shown]
    listed = "\n\nClaims that do not appear:\n\n" + "\n".join(open_ones) if open_ones else "\n\nAll claims appear."
    return table.markdown() + listed


def _difference(found: Difference) -> str:
    return f"{found.mean:+.4f} ({found.interval.low:+.4f} to {found.interval.high:+.4f})"


def why(tested: Finding) -> str:
    """Return what the figures say about a claim that does not appear, and what could explain it."""
    difference = tested.difference
    if tested.is_reversed:
        return (
            f"the opposite appears, because the interval ends at {difference.interval.high:+.4f}. Models and training "
            "are far smaller than the paper's, and learning rates, beta and alpha are larger."
        )
    if difference.mean == 0:
        return "both variants give the same scores."
    runs = " One seed gives no variance between trainings." if tested.runs == 1 else ""
    if abs(difference.mean) < tested.detectable:
        return (
            f"the difference of {difference.mean:+.4f} is below {tested.detectable:.4f}, which this many prompts "
            f"detect with a power of 80 %. The effect is absent or too small for this run.{runs}"
        )
    return (
        f"prompts alone would detect the difference of {difference.mean:+.4f}, but it varies between seeds, or other "
        f"claims of the table raise its p-value.{runs}"
    )


def _after_sft(tested: Finding, scores: Mapping[str, Runs]) -> str:
    """Return by how much the SFT models of a reversed claim's rows differ, because the trainings start from them."""
    pair = [scores.get(f"{name}/sft") for name in (tested.claim.higher, tested.claim.lower)]
    if not tested.is_reversed or pair[0] is None or pair[1] is None:
        return ""
    higher, lower = (fmean(value for run in runs for value in run) for runs in pair if runs is not None)
    return f" After SFT alone, the difference is {higher - lower:+.4f}."


def _slopes(slopes: Mapping[str, Sequence[float]], steps: Sequence[SlopeStep]) -> str:
    if not slopes:
        return "No run of this study has slopes."
    meaning = {"no-y-ws": "alpha 0", "wrpo": "schedule", "no-y-wt": "alpha 1"}
    table = Table(
        title="Slope of the reward margin over the first 20 % of the steps (at least 5), same triples",
        columns=("row", "alpha", "mean slope a step", "by seed"),
        rows=[
            (
                f"`{name}`",
                meaning[name],
                f"{fmean(slopes[name]):.3g}",
                ", ".join(f"{slope:.3g}" for slope in slopes[name]),
            )
            for name in MARGINS
            if name in slopes
        ],
    )
    lines = [f"- {_step(step)}" for step in steps]
    return "\n".join([table.markdown(), "", "The paper claims slopes that rise from alpha 0 to alpha 1:", "", *lines])


def _step(step: SlopeStep) -> str:
    text = f"`{step.higher}` above `{step.lower}`: {fmean(step.differences):+.3g}"
    if step.p is None:
        return f"{text}; one seed, no test."
    shown = "appears" if step.p < 0.05 else "does not appear"
    reason = (
        ""
        if step.p < 0.05
        else f": {len(step.differences)} seeds, and the slopes differ too little or in the other direction"
    )
    return f"{text}, {_p(step.p)} (paired t test over seeds, Holm), {shown}{reason}."


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _duration(seconds: Sequence[float]) -> str:
    """Return the time of a run, and in how many parts it was run: every part resumes the one before."""
    minutes = f"{sum(seconds) / 60:.0f} minutes"
    return minutes if len(seconds) == 1 else f"{minutes} in {len(seconds)} parts"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
