"""Rules of explicit fusion between the fields of SFT and of one fusion."""

from __future__ import annotations

from wrpo_operator.api.fusion import Fusion, SystemFusion
from wrpo_operator.api.rule import Rule
from wrpo_operator.api.spec import ExperimentSpec, Sft

_FUSES = "self.evaluation.systems.exists(s, has(s.fuse))"

FUSION_RULES: tuple[Rule, ...] = (
    Rule(
        (Sft,),
        "!has(self.fusion) || self.enabled",
        "fusion is part of SFT, which is disabled; set enabled to true or remove fusion",
        lambda m: m.fusion is None or m.enabled,
    ),
    Rule(
        (Sft,),
        "!has(self.fusion) || self.lossTokens == 'Response'",
        "the fusion loss is on tokens of responses alone; set lossTokens to Response or remove fusion",
        lambda m: m.fusion is None or m.loss_tokens == "Response",
    ),
    Rule(
        (ExperimentSpec,),
        f"self.sft.enabled || !{_FUSES}",
        "a system with fuse trains on the rows of SFT, which is disabled; set sft.enabled to true or remove the system",
        lambda m: m.sft.enabled or not _fuses(m),
    ),
    Rule(
        (ExperimentSpec,),
        f"self.sft.lossTokens == 'Response' || !{_FUSES}",
        "a system with fuse trains as SFT does, and its fusion loss is on tokens of responses alone; set "
        "sft.lossTokens to Response or remove the system",
        lambda m: m.sft.loss_tokens == "Response" or not _fuses(m),
    ),
    Rule(
        (Fusion, SystemFusion),
        "!self.compat || self.alignment == 'DTW'",
        "compat is about the released code, which aligns tokens and not spans; set alignment to DTW or remove compat",
        lambda m: not m.compat or m.alignment == "DTW",
    ),
    Rule(
        (Fusion, SystemFusion),
        "self.band == 0.1 || self.alignment == 'DTW'",
        "band limits dynamic time warping; set alignment to DTW or remove band",
        lambda m: m.band == 0.1 or m.alignment == "DTW",
    ),
    Rule(
        (Fusion, SystemFusion),
        "self.statistics == 'Sigmoid' || self.vocabulary == 'MS'",
        "statistics of aligned pairs are part of vocabulary MS; choose it or remove statistics",
        lambda m: m.statistics == "Sigmoid" or m.vocabulary == "MS",
    ),
    Rule(
        (Fusion, SystemFusion),
        "self.sources.all(a, self.sources.exists_one(b, b == a))",
        "sources names one twice; remove one of them",
        lambda m: len(set(m.sources)) == len(m.sources),
    ),
)


def _fuses(spec: ExperimentSpec) -> bool:
    return any(system.fuse is not None for system in spec.evaluation.systems)
