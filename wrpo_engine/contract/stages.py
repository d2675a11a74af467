"""The registry of stages: this project's, and those of installed distributions. Read once, at import.

A distribution adds a kind of stage by an entry point of the group `wrpo.stages` that names a StageDefinition. It must
be installed where the operator runs, in the images of the stages, and where the CRD is generated (`make crds`), which
gets the keys of its resources and deadlines. Operator and engine import the module with the definition: it imports
nothing heavy, and of this project only `wrpo_engine.config` and `wrpo_engine.contract`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from pydantic import ValidationError

from wrpo_engine.contract.builtin import BUILT_IN
from wrpo_engine.contract.definition import EVERY_ROLE, Section, StageDefinition
from wrpo_engine.errors import ConfigError

GROUP = "wrpo.stages"


def registry(definitions: Iterable[StageDefinition]) -> Mapping[str, StageDefinition]:
    """Return definitions by kind. Raises ConfigError if two of them disagree."""
    found: dict[str, StageDefinition] = {}
    roles: dict[str, StageDefinition] = {}
    sections: dict[str, Section] = {}
    for definition in definitions:
        if definition.kind in found:
            raise _conflict(definition, "params.stage", definition.kind, "a stage of this kind is defined already")
        found[definition.kind] = definition
        other = roles.setdefault(definition.role, definition)
        if other is not definition:
            raise _conflict(definition, "role", definition.role, f"it is the role of the stage {other.kind}")
        if sections.setdefault(definition.section.name, definition.section) != definition.section:
            rule = "another stage describes the section of this name differently"
            raise _conflict(definition, "section", definition.section.name, rule)
    for definition in found.values():
        for role in definition.inputs:
            if role != EVERY_ROLE and role not in roles:
                raise _conflict(definition, "inputs", role, f"no stage has this role; roles are {', '.join(roles)}")
    return MappingProxyType(found)


def installed() -> tuple[StageDefinition, ...]:
    """Return the definitions of other distributions, by the names of their entry points."""
    return tuple(_load(entry) for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name))


def _load(entry: EntryPoint) -> StageDefinition:
    field = f"entry point {entry.name} of the group {GROUP}"
    hint = f"Correct or uninstall the distribution {entry.dist.name if entry.dist else 'that has it'}."
    try:
        definition = entry.load()
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'definition'}: {fault['msg'].removeprefix('Value error, ')}"
            for fault in error.errors(include_url=False)
        )
        rule = f"{error.title} is not complete and valid: {faults}"
        raise ConfigError(field, entry.value, rule, hint, code="InvalidStage") from error
    except Exception as error:
        rule = f"it cannot be imported: {type(error).__name__}: {error}"
        raise ConfigError(field, entry.value, rule, hint, code="InvalidStage") from error
    if not isinstance(definition, StageDefinition):
        rule = f"it must name a StageDefinition, not a {type(definition).__name__}"
        raise ConfigError(field, entry.value, rule, hint, code="InvalidStage")
    return definition


def _conflict(definition: StageDefinition, field: str, value: str, rule: str) -> ConfigError:
    hint = f"Change the definition next to {definition.params.__module__}.{definition.params.__name__}."
    return ConfigError(f"{field} of the stage {definition.kind}", value, rule, hint, code="InvalidStage")


STAGES: Mapping[str, StageDefinition] = registry((*BUILT_IN, *installed()))
"""Kind -> definition: this project's stages in the order of an experiment, then those of other distributions."""
SECTIONS: tuple[Section, ...] = tuple(dict.fromkeys(definition.section for definition in STAGES.values()))
"""Keys of spec.resources and spec.deadlines.stages."""


def definition_of(stage: str) -> StageDefinition | None:
    """Return the definition of a stage by its kind or whole name, e.g. sample/qwen; None for an unknown kind."""
    return STAGES.get(stage.partition("/")[0])
