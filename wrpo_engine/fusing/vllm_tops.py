"""The likeliest tokens of a corpus by vLLM's prompt log-probabilities, without a response."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from wrpo_engine.config import Runtime
from wrpo_engine.contract.fusing import RepresentParams
from wrpo_engine.contract.sampling import TokenChoiceFields
from wrpo_engine.errors import DataError
from wrpo_engine.fusing.represented import Top
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.sampling.sampler import SampleRequest, SamplerSettings
from wrpo_engine.sampling.vllm_sampler import VllmSampler
from wrpo_engine.training.batch.rows import TokenRow


class _PromptReader(VllmSampler):
    """Asks for the log-probabilities of prompts in place of responses."""

    top_k = 1

    def _params(self, request: SampleRequest) -> Any:  # noqa: ARG002
        # vLLM generates at least one token.
        return self._sampling_params(temperature=0.0, max_tokens=1, prompt_logprobs=self.top_k, detokenize=False)

    def _sampled(self, request: SampleRequest, output: Any) -> Any:
        return int(request.key), output.prompt_logprobs


class VllmForward:
    """A model in vLLM's engine."""

    def __init__(
        self,
        model: ResolvedModel,
        params: RepresentParams,
        runtime: Runtime,
        *,
        longest: int,
        poll: Callable[[], None],
    ) -> None:
        settings = SamplerSettings(
            temperature=0.0,
            top_p=1.0,
            choice=TokenChoiceFields(),
            max_tokens=1,
            stop_token_ids=(),
            stop=(),
            dtype=params.precision,
            quantization=None,
            engine_args={"max_logprobs": params.top_k, **runtime.engine_args},
            max_model_length=longest + 1,
            tensor_parallel_size=runtime.tensor_parallel_size,
            gpu_memory_utilization=runtime.gpu_memory_utilization,
            poll=poll,
        )
        self._reader = _PromptReader(model, None, settings)
        self._reader.top_k = params.top_k

    def tops(self, rows: Sequence[TokenRow], on_row: Callable[[int], None]) -> Iterator[tuple[int, Top]]:
        """Yield (index, likeliest tokens) of every row, in any order; `on_row` gets the number of finished ones."""
        requests = [
            SampleRequest(key=str(index), prompt_token_ids=[*row.prompt, *row.responses[0]], num_samples=1, seed=0)
            for index, row in enumerate(rows)
        ]
        found: Any = self._reader.sample(requests)
        for index, logprobs in found:
            yield index, top_of(rows[index], logprobs, self._reader.top_k)
            on_row(1)

    def close(self) -> None:
        """Free the model's memory."""
        self._reader.close()


def top_of(row: TokenRow, logprobs: Sequence[Any], top_k: int) -> Top:
    """Return the likeliest tokens of a row's labels from vLLM's values for each token of prompt and response.

    vLLM lists the token itself too, also if it is not among the likeliest. DataError for values that are missing.
    """
    (response,) = row.responses
    places = logprobs[len(row.prompt) :]
    if len(places) != len(response) or any(not place for place in places):
        raise DataError(
            f"row {row.row_id}: vLLM gave log-probabilities for {sum(map(bool, places))} of {len(response)} tokens of "
            "the response",
            code="LogprobsMissing",
            field="sft.fusion",
            hint="Use the backend Engine for this model.",
        )
    ids_TK = np.zeros((len(response), top_k), dtype=np.int32)
    logps_TK = np.full((len(response), top_k), -np.inf, dtype=np.float32)
    for index, place in enumerate(places):
        ranked = sorted(place.items(), key=lambda item: (item[1].rank, item[0]))[:top_k]
        ids_TK[index, : len(ranked)] = [token for token, _ in ranked]
        logps_TK[index, : len(ranked)] = [value.logprob for _, value in ranked]
    labels = [float(place[token].logprob) for place, token in zip(places, response, strict=True)]
    return Top(ids_TK, logps_TK, np.array(labels, dtype=np.float32))
