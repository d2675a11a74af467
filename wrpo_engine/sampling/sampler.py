"""Interface of samplers: token ids in, texts out. Backends differ in speed; each is reproducible by itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, Protocol

from wrpo_engine.contract.sampling import TokenChoiceFields
from wrpo_engine.seeds import seed_of

Backend = Literal["vLLM", "Transformers"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class FinishReason(StrEnum):
    """Why a response ended."""

    STOP = "stop"
    LENGTH = "length"
    PROMPT_TOO_LONG = "prompt_too_long"


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """One prompt with `num_samples` responses to sample; sample i uses seed `seed + i`."""

    key: str
    """The caller's name for the prompt; unique in one call of `sample`."""
    prompt_token_ids: Sequence[int]
    num_samples: int
    seed: int
    temperature: float | None = None
    """None: the one of the settings."""
    max_tokens: int | None = None
    """None: the one of the settings."""
    group: int = 0
    """Requests of one group may share a batch in backends whose arithmetic depends on it. Fixed by the data, never by
    shards or interruptions, so that neither changes a result."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One response."""

    text: str
    num_tokens: int
    """Generated tokens, the stop token included."""
    finish_reason: FinishReason
    seed: int


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """All responses to one request, in the order of their sample index."""

    key: str
    samples: tuple[Sample, ...]

    @property
    def num_tokens(self) -> int:
        """Generated tokens."""
        return sum(sample.num_tokens for sample in self.samples)


@dataclass(frozen=True, kw_only=True)
class PromptLogps:
    """Log probabilities of one prompt's tokens, each given those before it: all but the first token's."""

    key: str
    logps: tuple[float, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens with a log probability."""
        return len(self.logps)


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How responses are sampled. Temperature 0 is greedy: all samples of a prompt are equal.

    A request may have another temperature and another length.
    """

    temperature: float
    top_p: float
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    choice: TokenChoiceFields = field(default_factory=TokenChoiceFields)
    """Penalties and limits of the choice of each token."""
    stop: tuple[str, ...] = ()
    """Texts that end a response; they and the text after them are not part of it."""
    dtype: Dtype = "auto"
    quantization: str | None = None
    """vLLM: name of the weights' quantisation; None: what the model's config says."""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """vLLM: further arguments by their Python names."""
    max_model_length: int | None = None
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float | None = None
    in_flight: int = 1024
    """vLLM: prompts given to the engine at a time, at least; it takes the next one whenever one is finished."""
    batch_tokens: int = 16384
    """Transformers: upper bound of prompt and response tokens in one batch."""
    poll: Callable[[], None] | None = None
    """Called at every decoding step; an exception from it ends sampling. Stop requests cannot wait for a batch."""

    reads_prompts: bool = False
    """Whether the log probabilities of prompts are asked for: the engine then bounds the memory of their logits."""

    def temperature_of(self, request: SampleRequest) -> float:
        """Return a request's temperature. 0 is greedy; below 1e-5 vLLM draws no random numbers either."""
        temperature = self.temperature if request.temperature is None else request.temperature
        return 0.0 if temperature < 1e-5 else temperature

    def is_greedy(self, request: SampleRequest) -> bool:
        """Return whether all samples of a request are equal."""
        return self.temperature_of(request) == 0.0

    def max_tokens_of(self, request: SampleRequest) -> int:
        """Return the longest response to a request in tokens, without regard to the context."""
        return self.max_tokens if request.max_tokens is None else request.max_tokens


class Sampler(Protocol):
    """A loaded model that generates responses."""

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sampled]:
        """Yield each request's responses as they are finished, in any order.

        A deque is emptied. Requests that the caller puts in front of it meanwhile are sampled next: the next turn of a
        conversation enters the engine as soon as the one before it is finished. It is of the same group.
        """
        ...

    def prompt_logps(self, requests: Sequence[SampleRequest]) -> Iterator[PromptLogps]:
        """Yield the log probabilities of each request's prompt as they are computed, in any order.

        The settings must say `reads_prompts`.
        """
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


def prompt_seed(seed: int, model: str, prompt_id: str) -> int:
    """Return the seed of a prompt's first sample: a function of (seed, model, prompt id) and of nothing else.

    Below 2**62, so that adding a sample index stays within a signed 64-bit number.
    """
    return seed_of(seed, model, prompt_id)


def waiting_of(requests: Sequence[SampleRequest]) -> deque[SampleRequest]:
    """Return the queue that a sampler empties: the caller's own, if it is one."""
    return requests if isinstance(requests, deque) else deque(requests)


def repeat_greedy(sample: Sample, num_samples: int) -> tuple[Sample, ...]:
    """Return the samples of a greedy response, which are all the same: it is generated once."""
    return tuple(replace(sample, seed=sample.seed + index) for index in range(num_samples))
