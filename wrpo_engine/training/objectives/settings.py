"""Explicit settings of a training stage, and the check that each can take effect."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from wrpo_engine.config import Runtime, SftParams, TrainParams
from wrpo_engine.contract.objectives import Setting
from wrpo_engine.errors import ConfigError

_WRITTEN_BY_PROGRAMS = {
    TrainParams: frozenset(Setting),
    Runtime: frozenset({"shards", "tensor_parallel_size"}),
}
"""Fields that no user sets together; if all of them are given, a program has written the whole model.

No user gives the settings of all objectives, or shards and tensor parallelism for training.
"""


def explicitly_set(settings: TrainParams | Runtime) -> AbstractSet[str]:
    """Return the names of the fields that a user has set, also those set to their default.

    A program that writes a whole model, such as the operator, also gives defaults that no user has set. For such a
    model the fields that differ from their defaults are returned.
    """
    given = settings.model_fields_set
    if not given >= _WRITTEN_BY_PROGRAMS[type(settings)]:
        return given
    defaults = {name: field.default for name, field in type(settings).model_fields.items()}
    return {name for name in given if getattr(settings, name) != defaults[name]}


def field_name(name: str) -> str:
    """Return the path of a field in the experiment's spec: beta is training.beta, max_length training.maxLength."""
    return "training." + "".join(part.title() if index else part for index, part in enumerate(name.split("_")))


def require_effect(params: SftParams | TrainParams, runtime: Runtime, *, needs_reference: bool) -> None:
    """Raise ConfigError for a setting of the run that cannot take effect.

    `preference_objective` checks the settings of objectives.
    """
    if runtime.reference == "in-memory" and not needs_reference:
        what = f"objective {params.objective.value}" if isinstance(params, TrainParams) else "SFT"
        raise ConfigError(
            field_name("reference"),
            runtime.reference,
            f"it has no effect: {what} has no reference model",
            f"Remove {field_name('reference')}.",
        )
    if runtime.micro_batch_size is not None and "micro_batch_tokens" in explicitly_set(runtime):
        raise ConfigError(
            field_name("micro_batch_tokens"),
            runtime.micro_batch_tokens,
            f"it has no effect with {field_name('micro_batch_size')} {runtime.micro_batch_size}, "
            "which fixes the rows of a forward pass",
            f"Give one of {field_name('micro_batch_tokens')} and {field_name('micro_batch_size')}.",
        )
    if not isinstance(params, TrainParams) or params.tokenized_triples is None:
        return
    for name in ("max_length", "max_prompt_length"):
        if name in explicitly_set(params):
            raise ConfigError(
                field_name(name),
                getattr(params, name),
                f"it has no effect with {field_name('tokenized_triples')}: "
                "token ids are used unchanged, no triple is cut or left out",
                f"Remove {field_name(name)}, and cut the triples before training if they are too long.",
            )
