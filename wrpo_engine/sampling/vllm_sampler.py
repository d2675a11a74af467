"""Sampling with vLLM's offline engine: the only file that imports vllm."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from typing import Any

from wrpo_engine.errors import ConfigError
from wrpo_engine.models import ResolvedModel
from wrpo_engine.sampling.sampler import FinishReason, Sample, Sampled, SampleRequest, SamplerSettings

_IN_FLIGHT = 1024
"""Prompts given to the engine at a time: enough to keep it busy, few enough that early prompts finish early."""
_CPU_MEMORY_FRACTION = 0.3
"""vLLM's default fails at start on a CPU, where the fraction is of the whole machine."""


class VllmSampler:
    """vLLM with continuous batching. All samples of a prompt are one request with one seed; sample i has seed + i."""

    def __init__(self, model: ResolvedModel, tokenizer: Any, settings: SamplerSettings) -> None:
        del tokenizer  # vLLM turns ids into text with its own copy.
        self._settings = settings
        # In this process: scheduling is then deterministic, it starts in seconds instead of half a minute on a CPU,
        # and it dies with its stage.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        vllm = _import_vllm()
        self._sampling_params = vllm.SamplingParams
        try:
            self._llm = vllm.LLM(
                model=str(model.path),
                trust_remote_code=model.trust_remote_code,
                seed=0,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **self._engine_options(),
            )
        except (ValueError, OSError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise ConfigError(
                "model",
                model.identity,
                f"vLLM cannot load it: {lines[0][:400]}",
                "Check sampling.maxModelLength, dtype and gpuMemoryUtilization, or set sampling.backend: Transformers.",
                code="ModelInvalid",
            ) from error

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sampled]:
        engine = self._llm.llm_engine
        waiting = iter(requests)
        running: dict[str, SampleRequest] = {}
        try:
            while True:
                while len(running) < _IN_FLIGHT and (request := next(waiting, None)) is not None:
                    running[request.key] = request
                    engine.add_request(
                        request.key, {"prompt_token_ids": list(request.prompt_token_ids)}, self._params(request)
                    )
                if not running:
                    return
                if self._settings.poll is not None:
                    self._settings.poll()
                for output in engine.step():
                    if output.finished:
                        yield _sampled(running.pop(output.request_id), output)
        finally:
            # The stage stopped early: the engine may be asked again.
            if running:
                engine.abort_request(list(running))

    def close(self) -> None:
        del self._llm
        gc.collect()
        with contextlib.suppress(Exception):
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()

    def _params(self, request: SampleRequest) -> Any:
        from vllm.sampling_params import RequestOutputKind

        return self._sampling_params(
            n=request.num_samples,
            temperature=self._settings.temperature,
            top_p=self._settings.top_p if self._settings.temperature > 0 else 1.0,
            max_tokens=self._settings.max_tokens,
            seed=request.seed,
            stop_token_ids=list(self._settings.stop_token_ids),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _engine_options(self) -> dict[str, Any]:
        settings = self._settings
        options: dict[str, Any] = {"dtype": settings.dtype}
        if settings.max_model_length is not None:
            options["max_model_len"] = settings.max_model_length
        if settings.gpu_memory_utilization is not None:
            options["gpu_memory_utilization"] = settings.gpu_memory_utilization
        if settings.tensor_parallel_size > 1:
            options["tensor_parallel_size"] = settings.tensor_parallel_size
        if _on_cpu():
            options.setdefault("gpu_memory_utilization", _CPU_MEMORY_FRACTION)
            options["enforce_eager"] = True
            # A prompt read in pieces makes vLLM rewind the request's random numbers, which generators on a CPU refuse.
            options["enable_chunked_prefill"] = False
            if settings.dtype == "auto":
                options["dtype"] = "float32"
        return options


def _import_vllm() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise ConfigError(
            "sampling.backend",
            "vLLM",
            f"vLLM is not installed in this image ({error})",
            "Set sampling.backend: Transformers, or use an image with vLLM (images.sampler).",
            code="BackendUnavailable",
        ) from error
    return vllm


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _sampled(request: SampleRequest, output: Any) -> Sampled:
    samples = [
        Sample(
            text=completion.text,
            num_tokens=len(completion.token_ids),
            finish_reason=FinishReason.LENGTH if completion.finish_reason == "length" else FinishReason.STOP,
            seed=request.seed + completion.index,
        )
        for completion in sorted(output.outputs, key=lambda completion: completion.index)
    ]
    return Sampled(key=request.key, samples=tuple(samples))
