"""Messages about sweeps: one function each. A message says what happened, the value, the rule and the next step."""

from __future__ import annotations

from collections.abc import Sequence


def bad_variant(name: str, fault: str) -> str:
    """Return the message of a variant that is no valid experiment; `fault` is a sentence about a path."""
    return f"Variant {name}: {fault}"


def more_errors(number: int) -> str:
    """Return the message about faults that are not shown."""
    return f"And {number} more."


def bad_grid(template: str, fault: str) -> str:
    """Return the message of a grid that cannot be expanded; `fault` names rule and remedy."""
    return f"spec.grid {template}: {fault}."


def too_many(what: str, number: int, most: int) -> str:
    """Return the message of a sweep that is too large; `what` are variants or experiments."""
    return f"spec: there are {number} {what}, and a sweep may have at most {most}. Divide it into several sweeps."


def same_names(doubled: Sequence[str]) -> str:
    """Return the message of variants with equal names."""
    return (
        f"spec: more than one variant is named {', '.join(doubled)}. Names must be unique; that of a grid must contain "
        "every parameter."
    )


def no_baseline(name: str, known: Sequence[str]) -> str:
    """Return the message of a baseline that is no variant."""
    return f"spec.report.baseline is {name}, which is no variant. Name one of {_some(known)}."


def no_source(name: str, known: Sequence[str]) -> str:
    """Return the message of a source that the common experiment lacks."""
    return f"sources names {name}, which spec.experiment.sources does not have. Name some of {_some(known)}."


def bad_number_of_sources(number: int, most: int) -> str:
    """Return the message of a number of sources out of range."""
    return f"sourcesBy.first is {number}, and spec.experiment has {most} sources. Set it to a number from 1 to {most}."


def placeholder_outside_grid() -> str:
    """Return the message of a placeholder in a variant of the list."""
    return "sourcesBy has a placeholder, which only a grid replaces. Write a number, or move the variant to spec.grid."


def no_path(path: str) -> str:
    """Return the message of a text that is no path."""
    return (
        f"{path!r} in set or unset is no path. Write fields with dots between them, e.g. training.alpha, and items of "
        "a list by their names, e.g. sources[qwen].shards."
    )


def no_item(path: str, field: str, item: str) -> str:
    """Return the message of a path to a missing item of a list."""
    return (
        f"{path!r} is set or unset, but {field} has no item named {item}. Name an existing one, or set the whole list."
    )


def no_object(path: str, field: str) -> str:
    """Return the message of a path through a value that has no fields."""
    return f"{path!r} is set or unset, but {field} is no object with fields. Check the path."


def overlapping(outer: str, inner: str) -> str:
    """Return the message of two paths of which one contains the other."""
    return f"set and unset have {outer!r} and {inner!r}, which is a part of it. Keep one of them."


def null_value(path: str) -> str:
    """Return the message of a value that kubectl would drop."""
    return f"set has null for {path!r}, which kubectl apply drops without a word. Add the path to unset instead."


def set_and_unset(path: str) -> str:
    """Return the message of a path in both lists."""
    return f"{path!r} is in set and in unset. Keep one of them."


def unlike_prompts(name: str, other: str, fields: Sequence[str]) -> str:
    """Return the message of a variant with other prompts than the first."""
    paths = ", ".join(f"prompts.{field}" for field in fields)
    return (
        f"Variant {name}: {paths} differs from variant {other}, so that their rows are not comparable. Set it in "
        "spec.experiment for all variants, or set spec.allowUnlikePrompts to true."
    )


def unscored(sources: Sequence[str]) -> str:
    """Return the message of an order by mean reward whose scores are not computed."""
    return (
        f"spec: sourcesBy MeanReward needs the scores of {', '.join(sources)}, which no other variant computes. Add a "
        "variant with all sources, or choose order Listed or Random."
    )


def order_awaited() -> str:
    """Return the message of a variant whose sources are not decided yet."""
    return "Waiting for the scores of all sources, which decide their order."


def order_impossible() -> str:
    """Return the message of a variant whose sources cannot be decided."""
    return (
        "The order of the sources cannot be decided, because every other variant has ended and some sources have no "
        "score. Correct the failed variants, or choose order Listed or Random."
    )


def slot_awaited(most: int | None) -> str:
    """Return the message of an experiment that is not created yet; None: no limit keeps it from starting."""
    if most is None:
        return "Not created yet."
    return f"Waiting because spec.parallelExperiments is {most}."


def edit_awaited(most: int) -> str:
    """Return the message of a finished experiment whose edit waits for others."""
    return f"The edited spec is waiting because spec.parallelExperiments is {most}."


def name_taken(name: str) -> str:
    """Return the message of an experiment whose name another object has."""
    return f"WRPOExperiment {name} exists and does not belong to this sweep. Delete it, or rename the variant."


def refused(name: str, words: str) -> str:
    """Return the message of an experiment that the API server refuses."""
    return f"The API server refuses WRPOExperiment {name}: {words}"


def removal() -> str:
    """Return the message of an experiment that is deleted before it is recreated."""
    return "Waiting for the deletion of its former experiment."


def of_experiment(name: str, text: str) -> str:
    """Return the message of one experiment of a variant with several."""
    return f"{name}: {text}"


def accepted() -> str:
    """Return the message of a valid spec."""
    return "The spec and all variants are valid."


def nothing_starts() -> str:
    """Return the message of an invalid sweep."""
    return "No experiment is created or changed until the spec is valid. Existing ones continue."


def running(number: int, waiting: int) -> str:
    """Return the message of a sweep whose experiments run."""
    return f"{number} experiments run, {waiting} wait."


def ended(succeeded: int, failed: int) -> str:
    """Return the message of a sweep that has ended."""
    return f"{succeeded} experiments succeeded, {failed} failed."


def failed(variants: Sequence[str], succeeded: int) -> str:
    """Return the message of a sweep in which variants failed."""
    return (
        f"Failed: {_some(variants)}. {succeeded} experiments succeeded. The row of a variant in status.variants shows "
        "the reason; an edit of the variant runs it again."
    )


def suspended() -> str:
    """Return the message of a suspended sweep."""
    return "spec.suspend is true: experiments are suspended and none is created. Set it to false to resume."


def not_suspended() -> str:
    """Return the message of a sweep that is not suspended."""
    return "The sweep is not suspended."


def not_ended() -> str:
    """Return the message of a sweep that has not ended."""
    return "The sweep has not ended."


def no_failure() -> str:
    """Return the message of a sweep without failures."""
    return "No variant has failed."


def nothing_blocks() -> str:
    """Return the message of a sweep that nothing blocks."""
    return "Nothing blocks."


def _some(found: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(found[:most])
    return shown if len(found) <= most else f"{shown} and {len(found) - most} more"
