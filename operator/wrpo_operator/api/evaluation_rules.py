"""Rules of spec.evaluation between the fields of one benchmark, judge or system."""

from __future__ import annotations

from wrpo_engine.contract.evaluation import SEPARATOR
from wrpo_operator.api.evaluation import SYSTEM_FORMS, Benchmark, Judge, Mixture, Selection, System
from wrpo_operator.api.names import HELD_OUT, MAIN_REWARD, SFT_SYSTEM, TARGET, TRAINED_SYSTEM
from wrpo_operator.api.presets import PRESETS
from wrpo_operator.api.rule import Rule

OWN_SYSTEMS = (TARGET, SFT_SYSTEM, TRAINED_SYSTEM)
_JUDGE_FORMS = ("endpoint", "serve", "serveReward", "reward")


def _count(names: tuple[str, ...]) -> str:
    """CEL: how many of these fields are set."""
    return " + ".join(f"(has(self.{name}) ? 1 : 0)" for name in names)


def _are_unique(field: str) -> str:
    """CEL: no item of a list of texts occurs twice."""
    return f"self.{field}.all(a, self.{field}.exists_one(b, b == a))"


_PRESETS = ", ".join(f"'{kind} {name}'" for kind, name in PRESETS)

EVALUATION_RULES: tuple[Rule, ...] = (
    Rule(
        (Benchmark, Judge, System),
        f"!self.name.contains('{SEPARATOR}')",
        "name contains two dashes in a row, which separate the parts of a stage's name; choose another name",
        lambda m: SEPARATOR not in m.name,
    ),
    Rule(
        (Benchmark,),
        f"self.name != '{HELD_OUT}'",
        f"name `{HELD_OUT}` is that of the held-out prompts, which are always answered; choose another name",
        lambda m: m.name != HELD_OUT,
    ),
    Rule(
        (Benchmark,),
        f"!has(self.preset) || (self.kind + ' ' + self.preset) in [{_PRESETS}]",
        "preset has no published settings for this kind; AlpacaEval2 has FuseEval and SimPO, ArenaHard and MTBench "
        "have FuseEval and Official; remove preset or choose one of these",
        lambda m: m.preset is None or (m.kind, m.preset) in PRESETS,
    ),
    Rule(
        (Benchmark,),
        "!has(self.development) || !has(self.limit) || self.development < self.limit",
        "development sets all items of limit aside, so that none is left to evaluate; lower development or raise limit",
        lambda m: m.development is None or m.limit is None or m.development < m.limit,
    ),
    Rule(
        (Benchmark,),
        "!has(self.protocol) || self.kind == 'Custom'",
        "protocol is for kind Custom, because other kinds have their own; remove it",
        lambda m: m.protocol is None or m.kind == "Custom",
    ),
    Rule(
        (Benchmark,),
        "self.kind != 'Custom' || has(self.bundle)",
        "kind Custom has no usual bundle; set bundle",
        lambda m: m.kind != "Custom" or m.bundle is not None,
    ),
    Rule(
        (Benchmark,),
        "!has(self.baseline) || !(self.kind == 'MTBench' || (has(self.protocol) && self.protocol == 'MTBench'))",
        "baseline has no effect because MTBench rates each answer alone; remove it",
        lambda m: m.baseline is None or "MTBench" not in (m.kind, m.protocol),
    ),
    Rule(
        (Benchmark,),
        "!has(self.referenceSet) || self.kind == 'MTBench' || (has(self.protocol) && self.protocol == 'MTBench')",
        "referenceSet is for MTBench; remove it",
        lambda m: m.reference_set is None or "MTBench" in (m.kind, m.protocol),
    ),
    Rule(
        (Judge,),
        f"{_count(_JUDGE_FORMS)} == 1",
        "a judge must have exactly one of endpoint, serve, serveReward and reward; set one and remove the others",
        lambda m: sum(v is not None for v in (m.judge_endpoint, m.serve, m.serve_reward, m.reward)) == 1,
    ),
    Rule(
        (Judge,),
        "!has(self.model) || has(self.endpoint)",
        "model is the name that is sent to an endpoint; set endpoint or remove model",
        lambda m: m.model is None or m.judge_endpoint is not None,
    ),
    Rule(
        (Judge,),
        "has(self.model) || !has(self.endpoint)",
        "an endpoint may serve several models; set model to the name that is sent to it",
        lambda m: m.model is not None or m.judge_endpoint is None,
    ),
    Rule(
        (Judge,),
        "!has(self.reportedModel) || has(self.endpoint)",
        "reportedModel is the name that an endpoint reports; set endpoint or remove reportedModel",
        lambda m: m.judge_reported_model is None or m.judge_endpoint is not None,
    ),
    Rule(
        (Judge,),
        "!has(self.apiKeySecretRef) || has(self.endpoint) || (has(self.reward) && has(self.reward.endpoint))",
        "apiKeySecretRef is sent to an endpoint, and this judge has none; remove it",
        lambda m: m.api_key_secret_ref is None or _endpoint_of(m) is not None,
    ),
    Rule(
        (Judge,),
        f"self.name != '{MAIN_REWARD}'",
        f"name `{MAIN_REWARD}` is that of the experiment's reward; choose another name for the judge",
        lambda m: m.name != MAIN_REWARD,
    ),
    Rule(
        (Judge,),
        _are_unique("benchmarks"),
        "benchmarks names one twice; remove one of them",
        lambda m: len(set(m.benchmarks)) == len(m.benchmarks),
    ),
    Rule(
        (System,),
        f"{_count(SYSTEM_FORMS)} == 1",
        "a system must have exactly one of model, source, select, mixture, fuse, merge and joint; set one and remove "
        "the others",
        lambda m: sum(getattr(m, name) is not None for name in SYSTEM_FORMS) == 1,
    ),
    Rule(
        (System,),
        f"!(self.name in {list(OWN_SYSTEMS)})",
        "names `target`, `sft` and `trained` are those of the experiment's models, which are always evaluated; choose "
        "another name",
        lambda m: m.name not in OWN_SYSTEMS,
    ),
    Rule(
        (Selection,),
        "(self.by == 'PairRM') == has(self.ranker)",
        "ranker is the model that compares answers by PairRM; set it for by PairRM and remove it otherwise",
        lambda m: (m.by == "PairRM") == (m.ranker is not None),
    ),
    Rule(
        (Selection,),
        "!has(self.reward) || self.by == 'Reward'",
        "reward has no effect on this choice; set by to Reward or remove reward",
        lambda m: m.reward is None or m.by == "Reward",
    ),
    Rule(
        (Selection,),
        _are_unique("members"),
        "members names one twice; remove one of them",
        lambda m: len(set(m.members)) == len(m.members),
    ),
    Rule(
        (Mixture,),
        _are_unique("proposers"),
        "proposers names one twice; remove one of them",
        lambda m: len(set(m.proposers)) == len(m.proposers),
    ),
)


def _endpoint_of(judge: Judge) -> str | None:
    return judge.reward.endpoint if judge.reward is not None else judge.judge_endpoint
