"""Rules between fields: each in CEL for the API server and in Python for `wrpo plan` and the operator.

Only standard CEL is used, none of Kubernetes' extension libraries, so that any evaluator can check the rules.
`self` is the object of the rule's class; its fields with a default always exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from wrpo_engine.contract.objectives import (
    Objective,
    Setting,
    forms_that_have,
    listed,
    objectives_of_pairs,
    objectives_that_accept,
    objectives_that_have,
    objectives_with,
)
from wrpo_engine.contract.types import is_hub_id
from wrpo_operator.api.evaluation import EvaluationReward, ModelSystem, ServedModel
from wrpo_operator.api.evaluation_names import evaluation_errors, name_rules
from wrpo_operator.api.evaluation_rules import EVALUATION_RULES
from wrpo_operator.api.fusion_rules import FUSION_RULES
from wrpo_operator.api.merging_rules import MERGING_RULES
from wrpo_operator.api.names import MAIN_REWARD, MAX_EXPERIMENT_NAME, REWARD_SEPARATOR, TARGET
from wrpo_operator.api.pods import EnvVar, Resources, Scheduling, Toleration
from wrpo_operator.api.resource_rules import accelerator_errors, parallelism_errors, resource_errors
from wrpo_operator.api.rule import Rule
from wrpo_operator.api.sections import (
    AdditionalReward,
    EvaluationPrompts,
    PinnedModel,
    Prompts,
    Reward,
    RewardSource,
    Source,
    Storage,
    Target,
)
from wrpo_operator.api.spec import ExperimentSpec, Sft, Training

RESERVED_ENV = re.compile(r"^(WRPO_|PET_|KUBEFLOW_|JOB_COMPLETION_INDEX$)")
COMMIT = re.compile(r"^[0-9a-f]{40}$")
_WITH_SOURCE = objectives_with(lambda objective: objective.has_source)
_WITHOUT_SOURCE = objectives_with(lambda objective: not objective.has_source)
_WITHOUT_PREFERENCES = objectives_with(lambda objective: objective.form is None)


def _is_path(model: PinnedModel | RewardSource) -> bool:
    return model.model is not None and not is_hub_id(model.model)


_PINNED = (Target, Source, ModelSystem, ServedModel, PinnedModel)
_REWARDS = (Reward, AdditionalReward, EvaluationReward)
_OPTIMIZERS = (Sft, Training)

_FRACTION = "^([0-9]+[.][0-9]*[1-9][0-9]*|[0-9]*[1-9][0-9]*m)$"
"""A quantity below one: standard CEL cannot compare quantities, and so sees only the plain forms."""


def _never(field: str, names: str, forms: str) -> str:
    """CEL: no quantity of these resources has such a form. Thousands of thousandths are whole."""
    value = f"self.{field}[name]"
    fraction = f"({value}.matches('{forms}') && !{value}.endsWith('000m'))"
    return f"self.{field}.all(name, !({names}) || type({value}) == int || !{fraction})"


_DEVICE = "name.contains('/') && !name.contains('kubernetes.io/')"
_BYTES = "name == 'memory' || name == 'ephemeral-storage' || name.startsWith('hugepages-')"


_ACCELERATOR = "nvidia[.]com/(gpu|mig-).*|amd[.]com/.*|gpu[.]intel[.]com/.*"
"""The compute devices that the API server checks; resource_rules.py checks all of them, and pipelines too."""


def _enough(limits: str, tensor: str) -> str:
    """CEL: each whole number of compute devices in these limits is 0 or suffices for the tensor parallel size."""
    value = f"{limits}[name]"
    text = f"(!{value}.matches('^[0-9]+$') || int({value}) == 0 || int({value}) >= {tensor})"
    enough = f"(type({value}) == int ? ({value} == 0 || {value} >= {tensor}) : {text})"
    return f"!has({tensor}) || {limits}.all(name, !name.matches('^({_ACCELERATOR})$') || {enough})"


def _is_one_of(path: str, objectives: Sequence[Objective]) -> str:
    """CEL: the objective at `path` is one of these."""
    quoted = [f"'{objective}'" for objective in objectives]
    return f"{path} == {quoted[0]}" if len(quoted) == 1 else f"{path} in [{', '.join(quoted)}]"


def _is_none_of(path: str, objectives: Sequence[Objective]) -> str:
    """CEL: the objective at `path` is none of these."""
    return " && ".join(f"{path} != '{objective}'" for objective in objectives)


_NO_PREFERENCES = _is_one_of("self.training.objective", _WITHOUT_PREFERENCES)


def _setting_rule(setting: Setting) -> Rule:
    """Refuse a setting with the objectives that do not have it, unless it has its neutral value."""
    field = str(Training.model_fields[setting].alias)
    neutral = Training.model_fields[setting].get_default(call_default_factory=True)
    is_neutral, remedy = _neutral(field, setting.neutral)
    objectives, accepting = objectives_that_have(setting), objectives_that_accept(setting)
    forms = forms_that_have(setting)
    owners = f"the {listed(forms, 'and')} forms" if forms else "the objectives with a source response"
    return Rule(
        (Training,),
        f"{is_neutral} || {_is_one_of('self.objective', accepting)}",
        f"{field} {setting.belongs} {owners}; {remedy} or choose objective {listed(objectives, 'or')}",
        lambda training: getattr(training, setting) == neutral or training.objective in accepting,
    )


def _neutral(field: str, value: float | bool | dict[str, str | float]) -> tuple[str, str]:
    """Return the CEL that a field has its neutral value, and the remedy for any other."""
    match value:
        case bool():
            return f"!self.{field}", "set it to false"
        case dict():
            parts = [f"self.{field}.{name} == {part!r}" for name, part in value.items()]
            return f"({' && '.join(parts)})", "remove it"
        case _:
            return f"self.{field} == {value}", f"leave it at {value:g}" if value else "set it to 0"


RULES: tuple[Rule, ...] = (
    *(
        Rule(
            (Resources,),
            _never(field, _DEVICE, _FRACTION),
            f"{field} contains a fraction of a device, which cannot be shared; write a whole number",
            None,
        )
        for field in ("requests", "limits")
    ),
    *(
        Rule(
            (Resources,),
            _never(field, _BYTES, _FRACTION),
            f"{field} contains a fraction of a byte; write bytes or a suffix such as Mi or Gi",
            None,
        )
        for field in ("requests", "limits")
    ),
    Rule(
        (Source,),
        f"!has(self.resources) || {_enough('self.resources.limits', 'self.sampling.tensorParallelSize')}",
        "sampling.tensorParallelSize exceeds the accelerators in resources.limits; lower it, or raise or remove the "
        "limit",
        None,
    ),
    Rule(
        (ExperimentSpec,),
        _enough("self.resources.sample.limits", "self.sampling.tensorParallelSize"),
        "sampling.tensorParallelSize exceeds the accelerators in resources.sample.limits; lower it, or raise or remove "
        "the limit",
        None,
    ),
    Rule(
        (Storage,),
        "has(self.s3) != has(self.volume)",
        "storage must have exactly one of s3 and volume; set one and remove the other",
        lambda m: (m.s3 is None) != (m.volume is None),
    ),
    Rule(
        (Storage,),
        "self == oldSelf",
        "storage cannot be changed because it holds the existing artifacts; create a new experiment",
        None,
    ),
    Rule(
        (Source,),
        f"self.name != '{TARGET}'",
        f"name `{TARGET}` is reserved for the target model; choose another name",
        lambda m: m.name != TARGET,
    ),
    Rule(
        _PINNED,
        "!self.trustRemoteCode || self.model.startsWith('/') || self.model.startsWith('storage://')"
        " || (has(self.revision) && self.revision.matches('^[0-9a-f]{40}$'))",
        "trustRemoteCode runs code from the hub and so needs a pinned revision; set revision to a 40-digit commit",
        lambda m: not m.trust_remote_code or _is_path(m) or bool(COMMIT.match(m.revision or "")),
    ),
    Rule(
        _PINNED,
        "!has(self.revision) || !(self.model.startsWith('/') || self.model.startsWith('storage://'))",
        "revision has no effect on a path; remove it, or give a hub id as model",
        lambda m: m.revision is None or not _is_path(m),
    ),
    Rule(
        (Prompts, EvaluationPrompts),
        "!has(self.revision) ||"
        " (has(self.dataset) && !self.dataset.startsWith('/') && !self.dataset.startsWith('storage://'))",
        "revision has an effect only on a hub id; remove it, or give a hub id as dataset",
        lambda m: m.revision is None or (m.dataset is not None and is_hub_id(m.dataset)),
    ),
    Rule(
        _REWARDS,
        "(has(self.model) ? 1 : 0) + (has(self.function) ? 1 : 0) + (has(self.endpoint) ? 1 : 0) == 1",
        "a reward must have exactly one of model, function and endpoint; set one and remove the others",
        lambda m: sum(value is not None for value in (m.model, m.function, m.endpoint)) == 1,
    ),
    Rule(
        _REWARDS,
        "!self.trustRemoteCode || (has(self.model) && (self.model.startsWith('/') ||"
        " self.model.startsWith('storage://') || (has(self.revision) && self.revision.matches('^[0-9a-f]{40}$'))))",
        "trustRemoteCode runs code from the hub and so needs a model with a pinned revision; set revision to a "
        "40-digit commit",
        lambda m: (
            not m.trust_remote_code or (m.model is not None and (_is_path(m) or bool(COMMIT.match(m.revision or ""))))
        ),
    ),
    Rule(
        _REWARDS,
        "!has(self.revision) || (has(self.model) && !self.model.startsWith('/') && !self.model.startsWith('storage://'))",
        "revision has an effect only on a hub id; remove it, or give a hub id as model",
        lambda m: m.revision is None or (m.model is not None and not _is_path(m)),
    ),
    Rule(
        _REWARDS,
        "!has(self.endpointModel) || has(self.endpoint)",
        "endpointModel is sent to an endpoint; set endpoint or remove endpointModel",
        lambda m: m.endpoint_model is None or m.endpoint is not None,
    ),
    Rule(
        (AdditionalReward,),
        f"self.name != '{MAIN_REWARD}'",
        f"name `{MAIN_REWARD}` is that of the first reward; choose another name",
        lambda m: m.name != MAIN_REWARD,
    ),
    Rule(
        _OPTIMIZERS,
        "self.maxPromptLength < self.maxLength",
        "maxPromptLength must be below maxLength to leave tokens for the response; lower it",
        lambda m: m.max_prompt_length < m.max_length,
    ),
    Rule(
        (EnvVar,),
        "has(self.value) != has(self.valueFrom)",
        "an environment variable must have exactly one of value and valueFrom",
        lambda m: (m.value is None) != (m.value_from is None),
    ),
    Rule(
        (EnvVar,),
        "!self.name.matches('^(WRPO_|PET_|KUBEFLOW_|JOB_COMPLETION_INDEX$)')",
        "names beginning with WRPO_, PET_ or KUBEFLOW_, and JOB_COMPLETION_INDEX, belong to the stages; choose another",
        lambda m: not RESERVED_ENV.match(m.name),
    ),
    Rule(
        (Toleration,),
        "has(self.key) || self.operator == 'Exists'",
        "a toleration without key matches all taints and needs operator Exists",
        lambda m: m.key is not None or m.operator == "Exists",
    ),
    Rule(
        (Toleration,),
        "!has(self.value) || self.operator == 'Equal'",
        "a toleration with operator Exists has no value; remove value or set operator to Equal",
        lambda m: m.value is None or m.operator == "Equal",
    ),
    Rule(
        (Scheduling,),
        "has(self.queueName) || !(has(self.workloadPriorityClassName) || has(self.requiredTopology) ||"
        " has(self.preferredTopology))",
        "workloadPriorityClassName and topology are Kueue's and need a queue; set queueName or remove them",
        lambda m: (
            m.queue_name is not None
            or (m.workload_priority_class_name, m.required_topology, m.preferred_topology) == (None, None, None)
        ),
    ),
    Rule(
        (Scheduling,),
        "!(has(self.requiredTopology) && has(self.preferredTopology))",
        "requiredTopology and preferredTopology exclude each other; remove one",
        lambda m: m.required_topology is None or m.preferred_topology is None,
    ),
    Rule(
        (Scheduling,),
        "!has(self.podGroup) || self.podGroup != 'SchedulerPlugins' || has(self.schedulerName)",
        "podGroup SchedulerPlugins works only with a scheduler that runs the coscheduling plugin; set schedulerName",
        lambda m: m.pod_group != "SchedulerPlugins" or m.scheduler_name is not None,
    ),
    Rule(
        (Scheduling,),
        "!(has(self.podGroup) && has(self.queueName))",
        "a queue already admits whole gangs; remove podGroup or queueName",
        lambda m: m.pod_group is None or m.queue_name is None,
    ),
    *(_setting_rule(setting) for setting in Setting),
    Rule(
        (ExperimentSpec,),
        "!self.sft.enabled || self.prompts.sftFraction > 0.0",
        "prompts.sftFraction is 0, so SFT has no training data; raise it above 0 or set sft.enabled to false",
        lambda m: not m.sft.enabled or m.prompts.sft_fraction > 0,
    ),
    Rule(
        (ExperimentSpec,),
        f"self.prompts.sftFraction < 1.0 || {_NO_PREFERENCES}",
        "prompts.sftFraction is 1, so preference optimisation has no prompts; lower it below 1 or set "
        "training.objective to SFTOnly",
        lambda m: m.prompts.sft_fraction < 1 or m.training.objective.form is None,
    ),
    Rule(
        (ExperimentSpec,),
        f"self.sft.enabled || {_is_none_of('self.training.objective', _WITHOUT_PREFERENCES)}",
        "training.objective is SFTOnly but sft.enabled is false, so nothing would be trained; change one of them",
        lambda m: m.sft.enabled or m.training.objective.form is not None,
    ),
    Rule(
        (ExperimentSpec,),
        f"self.sampling.samplesPerPrompt >= 2 || {_NO_PREFERENCES}",
        "sampling.samplesPerPrompt is 1, so the target's responses form no pair; set it to 2 or more",
        lambda m: m.sampling.samples_per_prompt >= 2 or m.training.objective.form is None,
    ),
    Rule(
        (ExperimentSpec,),
        f"self.sampling.temperature > 0.0 || {_NO_PREFERENCES}",
        "sampling.temperature is 0, so the target's responses to a prompt are equal and form no pair; raise it",
        lambda m: m.sampling.temperature > 0 or m.training.objective.form is None,
    ),
    Rule(
        (ExperimentSpec,),
        f"!self.curation.requireSourceBetter || {_is_one_of('self.training.objective', _WITH_SOURCE)}",
        "curation.requireSourceBetter compares with source responses, which only the WRPO objectives use; set it to "
        "false or choose a WRPO objective",
        lambda m: not m.curation.require_source_better or m.training.objective.has_source,
    ),
    Rule(
        (ExperimentSpec,),
        f"self.curation.pairing == 'WRPO' || {_is_one_of('self.training.objective', _WITHOUT_SOURCE)}",
        "curation.pairing WithinSource and BestWorst give pairs, and the WRPO objectives need triples; choose pairing "
        f"WRPO, or objective {listed(objectives_of_pairs(), 'or')}",
        lambda m: m.curation.pairing == "WRPO" or not m.training.objective.has_source,
    ),
    Rule(
        (ExperimentSpec,),
        f"size(self.reward.additional) == 0 || !self.sources.exists(s, s.name.contains('{REWARD_SEPARATOR}'))",
        "with reward.additional no source name may contain two dashes in a row, because stage names would be ambiguous",
        lambda m: not m.reward.additional or not any(REWARD_SEPARATOR in source.name for source in m.sources),
    ),
    Rule(
        (ExperimentSpec,),
        "!self.evaluation.enabled || self.prompts.evaluation.prompts > 0",
        "evaluation is enabled but prompts.evaluation.prompts is 0; raise it or set evaluation.enabled to false",
        lambda m: not m.evaluation.enabled or m.prompts.evaluation.prompts > 0,
    ),
    *EVALUATION_RULES,
    *FUSION_RULES,
    *MERGING_RULES,
    *name_rules(),
)

NAME_RULE_CEL = f"size(self.metadata.name) <= {MAX_EXPERIMENT_NAME}"
NAME_RULE_MESSAGE = f"metadata.name is a label value and may have at most {MAX_EXPERIMENT_NAME} characters"


def rules_of(model: type[BaseModel]) -> tuple[Rule, ...]:
    """Return the rules of one class of the schema."""
    return tuple(rule for rule in RULES if model in rule.models)


def broken_rules(spec: ExperimentSpec) -> tuple[str, ...]:
    """Return every broken rule and duplicate name as a sentence that begins with the field's path."""
    broken = [
        f"{path}: {rule.message}."
        for path, part in _walk("spec", spec)
        for rule in rules_of(type(part))
        if rule.check is not None and not rule.check(part)
    ]
    broken += [
        error
        for path, part in _walk("spec", spec)
        if isinstance(part, Resources)
        for error in resource_errors(path, part)
    ]
    broken += accelerator_errors(spec)
    broken += parallelism_errors(spec)
    broken += evaluation_errors(spec)
    for path, names in (
        ("spec.sources", [source.name for source in spec.sources]),
        ("spec.reward.additional", [reward.name for reward in spec.reward.additional]),
        ("spec.evaluation.benchmarks", [benchmark.name for benchmark in spec.evaluation.benchmarks]),
        ("spec.evaluation.judges", [judge.name for judge in spec.evaluation.judges]),
        ("spec.evaluation.systems", [system.name for system in spec.evaluation.systems]),
        ("spec.env", [variable.name for variable in spec.env]),
        ("spec.imagePullSecrets", [secret.name for secret in spec.image_pull_secrets]),
    ):
        doubled = sorted({name for name in names if names.count(name) > 1})
        broken += [f"{path}: name `{name}` is used more than once; names must be unique." for name in doubled]
    return tuple(broken)


def _walk(path: str, part: BaseModel) -> Iterator[tuple[str, BaseModel]]:
    yield path, part
    for name, info in type(part).model_fields.items():
        value = getattr(part, name)
        below = f"{path}.{info.alias or name}"
        if isinstance(value, BaseModel):
            yield from _walk(below, value)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from _walk(f"{below}[{index}]", item)
