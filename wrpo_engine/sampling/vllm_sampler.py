"""Sampling with vLLM's offline engine: the only file that imports vllm."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wrpo_engine.errors import ConfigError, TemporaryError, WrpoError
from wrpo_engine.hub.models import ResolvedModel, declared_architectures, vocabulary_size
from wrpo_engine.process.environment import prepare_cubins
from wrpo_engine.process.moments import ENGINE_STARTED
from wrpo_engine.process.storage_errors import storage_error
from wrpo_engine.sampling.engine_faults import Meaning, fault_of
from wrpo_engine.sampling.engine_process import EngineOutput, WatchedCall, started_processes
from wrpo_engine.sampling.nucleus import keep_nucleus
from wrpo_engine.sampling.options import check_engine_args, check_quantization, pinned_formats
from wrpo_engine.sampling.sampler import (
    FinishReason,
    PromptLogps,
    Sample,
    Sampled,
    SampleRequest,
    SamplerSettings,
    repeat_greedy,
    waiting_of,
)

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("wrpo_engine")

_KEPT = "The pod's log has the engine's output. Parts that are done are kept; the next attempt continues."
_KILLED = "Signal 9 usually means that the host's memory ran out: request more in the stage's resources."
_KV_CACHE_ARGUMENTS = ("kv_cache_memory_bytes", "num_gpu_blocks_override")
"""Arguments by which a user gives the size of the KV cache."""
_LARGE_VOCABULARY = 262_144
_LOGITS_PER_STEP = 2**26
"""Logits of prompt tokens in one step of the engine: 512 MiB in float32, and as much for their log probabilities."""
_MIN_BATCHED_TOKENS = 128
"""For the largest vocabularies; each step reads all weights."""
_CPU_MEMORY_FRACTION = 0.3
"""vLLM's default fails at start on a CPU, where the fraction is of the whole machine."""


class VllmSampler:
    """vLLM with continuous batching. All samples of a prompt are one request with one seed; sample i has seed + i."""

    def __init__(self, model: ResolvedModel, tokenizer: Any, settings: SamplerSettings) -> None:
        del tokenizer  # vLLM turns ids into text with its own copy.
        self._settings = settings
        vllm = _import_vllm()
        on_cpu = _on_cpu()
        _prepare_environment(on_cpu=on_cpu)
        _check_options(settings)
        if on_cpu:
            _register_classes(model)
            _sort_less()
        else:
            _check_devices(settings, devices=_visible_devices())
        self._sampling_params = vllm.SamplingParams
        self._output = EngineOutput()
        try:
            with self._output.captured(), started_processes() as processes:
                self._llm = vllm.LLM(
                    model=str(model.path),
                    trust_remote_code=model.trust_remote_code,
                    seed=0,
                    **engine_options(settings, on_cpu=on_cpu, vocabulary=vocabulary_size(model) or _LARGE_VOCABULARY),
                )
        except Exception as error:
            if isinstance(error, MemoryError | WrpoError):
                raise
            raise start_failure(error, model, settings, self._output.lines()) from error
        log.info(ENGINE_STARTED)
        self._processes = processes
        step: Callable[[], Sequence[Any]] = self._llm.llm_engine.step
        self._step = WatchedCall(step, processes) if processes else step

    def sample(self, requests: Sequence[SampleRequest]) -> Iterator[Sampled]:
        """Yield each request's responses as they are finished; TemporaryError if the engine fails."""
        for request, output in self._outputs(waiting_of(requests), self._params):
            yield self._sampled(request, output)

    def prompt_logps(self, requests: Sequence[SampleRequest]) -> Iterator[PromptLogps]:
        """Yield each prompt's log probabilities; TemporaryError if the engine fails.

        One token is generated after each prompt, as vLLM requires, so the context must have room for it.
        """
        for request, output in self._outputs(waiting_of(requests), self._reading_params):
            ids = request.prompt_token_ids
            by_token = output.prompt_logprobs or []
            logps = [float(by_token[place][ids[place]].logprob) for place in range(1, len(ids))]
            yield PromptLogps(key=request.key, logps=tuple(logps))

    def _outputs(
        self, waiting: deque[SampleRequest], params_of: Callable[[SampleRequest], Any]
    ) -> Iterator[tuple[SampleRequest, Any]]:
        """Yield each finished request with vLLM's output; `waiting` may get more requests meanwhile."""
        engine = self._llm.llm_engine
        running: dict[str, SampleRequest] = {}
        try:
            in_flight = prompts_in_flight(self._settings)
            while True:
                while len(running) < in_flight and waiting:
                    request = waiting.popleft()
                    running[request.key] = request
                    self._add(request, params_of(request))
                if not running:
                    return
                if self._settings.poll is not None:
                    self._settings.poll()
                for output in self._next_outputs():
                    if output.finished:
                        yield running.pop(output.request_id), output
        finally:
            # The stage stopped early: the engine may be asked again. One that died has nothing to abort.
            if running:
                with contextlib.suppress(Exception):
                    engine.abort_request(list(running))

    def _add(self, request: SampleRequest, params: Any) -> None:
        try:
            self._llm.llm_engine.add_request(request.key, {"prompt_token_ids": list(request.prompt_token_ids)}, params)
        except Exception:
            # If the engine has died since its last step, the next one says why.
            if all(process.exitcode is None for process in self._processes):
                raise

    def _next_outputs(self) -> Sequence[Any]:
        try:
            return self._step()
        except WrpoError:
            raise
        except Exception as error:
            raise run_failure(error, self._output.lines()) from error

    def close(self) -> None:
        """Shut the engine down and free its memory."""
        del self._llm, self._step
        gc.collect()
        with contextlib.suppress(Exception):
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()

    def _params(self, request: SampleRequest) -> Any:
        from vllm.sampling_params import RequestOutputKind

        settings = self._settings
        is_greedy = settings.is_greedy(request)
        return self._sampling_params(
            n=1 if is_greedy else request.num_samples,
            temperature=settings.temperature_of(request),
            top_p=1.0 if is_greedy else settings.top_p,
            top_k=0 if is_greedy else settings.choice.top_k,
            min_p=0.0 if is_greedy else settings.choice.min_p,
            repetition_penalty=settings.choice.repetition_penalty,
            presence_penalty=settings.choice.presence_penalty,
            frequency_penalty=settings.choice.frequency_penalty,
            max_tokens=settings.max_tokens_of(request),
            seed=request.seed,
            stop=list(settings.stop) or None,
            stop_token_ids=list(settings.stop_token_ids),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _reading_params(self, _: SampleRequest) -> Any:
        from vllm.sampling_params import RequestOutputKind

        return self._sampling_params(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY
        )

    def _sampled(self, request: SampleRequest, output: Any) -> Sampled:
        samples = tuple(
            Sample(
                text=completion.text,
                num_tokens=len(completion.token_ids),
                finish_reason=finish_reason_of(completion.finish_reason, request.key),
                seed=request.seed + completion.index,
            )
            for completion in sorted(output.outputs, key=lambda completion: completion.index)
        )
        if self._settings.is_greedy(request):
            samples = repeat_greedy(samples[0], request.num_samples)
        return Sampled(key=request.key, samples=samples)


def prompts_in_flight(settings: SamplerSettings) -> int:
    """Return how many prompts the engine is given at a time: some wait for each sequence it computes (max_num_seqs),
    so that it never idles, and no more, so that early prompts finish early.
    """
    sequences = settings.engine_args.get("max_num_seqs")
    return max(settings.in_flight, 2 * sequences if isinstance(sequences, int) else 0)


def finish_reason_of(reason: str | None, prompt: str) -> FinishReason:
    """Return what a reason of vLLM means; TemporaryError if the engine gave up on the response."""
    match reason:
        case "stop":
            return FinishReason.STOP
        case "length" | "repetition":
            # A stop for repetition cuts the response off as a limit does: it did not end by itself.
            return FinishReason.LENGTH
        case _:
            raise TemporaryError(
                f"vLLM gave up on a response to prompt {prompt}: finish reason {reason}",
                code="EngineDied",
                hint=_KEPT,
            )


def engine_options(settings: SamplerSettings, *, on_cpu: bool, vocabulary: int = _LARGE_VOCABULARY) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` other than the model's. The user's own come last and override the others.

    `vocabulary` counts the logits of a token, which bound how many tokens of prompts are read in one step.
    """
    options: dict[str, Any] = {
        "dtype": settings.dtype,
        # The samples of a prompt, and prompts with one system prompt, share what they have read.
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if settings.max_model_length is not None:
        options["max_model_len"] = settings.max_model_length
    if settings.quantization is not None:
        options["quantization"] = settings.quantization
    if settings.gpu_memory_utilization is not None:
        options["gpu_memory_utilization"] = settings.gpu_memory_utilization
    if settings.tensor_parallel_size > 1:
        options["tensor_parallel_size"] = settings.tensor_parallel_size
    if on_cpu:
        options.setdefault("gpu_memory_utilization", _CPU_MEMORY_FRACTION)
        options["enforce_eager"] = True
        # A prompt read in pieces makes vLLM rewind the request's random numbers, which generators on a CPU refuse.
        options["enable_chunked_prefill"] = False
        if settings.dtype == "auto":
            options["dtype"] = "float32"
    options |= {**settings.engine_args, **pinned_formats(settings.engine_args)}
    return options | _reading_options(options, vocabulary) if settings.reads_prompts else options


def _reading_options(options: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """Return the options that bound the memory of reading prompts, the user's own bounds included.

    The logits of all prompt tokens of a step exist at a time, several times over, and vLLM does not count them when it
    divides the memory. Nothing is drawn, so a prompt may be read in pieces on a CPU too.
    """
    bound = max(_MIN_BATCHED_TOKENS, _LOGITS_PER_STEP // vocabulary)
    tokens = _at_most(bound, options.get("max_num_batched_tokens"))
    return {
        "enable_chunked_prefill": True,
        "enable_prefix_caching": False,
        "max_num_batched_tokens": tokens,
        "max_num_seqs": min(tokens, _at_most(_MIN_BATCHED_TOKENS, options.get("max_num_seqs"))),
    }


def _at_most(bound: int, given: object) -> int:
    return min(bound, given) if isinstance(given, int) else bound


def _prepare_environment(*, on_cpu: bool) -> None:
    """Set what vLLM reads from the environment, unless the pod sets it."""
    if on_cpu:
        # In this process: scheduling is then deterministic, and it starts in seconds instead of half a minute.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    else:
        prepare_cubins(os.environ)
    # Elsewhere the engine has a separate process, so that scheduling does not wait for detokenization.
    # A fork of a process with threads (of polars, of the publisher) may hang.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")


def _register_classes(model: ResolvedModel) -> None:
    """Let vLLM ask the model's classes here what they support, where no device must stay untouched.

    vLLM would start a further process for the question, which imports everything a second time.
    """
    from vllm import ModelRegistry

    for name in declared_architectures(model):
        if name in ModelRegistry.models:
            # A class that cannot be imported is vLLM's to report, when it loads the model.
            with contextlib.suppress(Exception):
                ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


@functools.cache
def _sort_less() -> None:
    """Let vLLM find the nucleus of top-p without a sort of the whole vocabulary."""
    from vllm.v1.sample.ops import topk_topp_sampler

    untyped: Any = topk_topp_sampler
    whole = untyped.apply_top_k_top_p

    def apply(logits: Tensor, k: Tensor | None, p: Tensor | None) -> Tensor:
        if k is not None or p is None:
            masked: Tensor = whole(logits, k, p)
            return masked
        return keep_nucleus(logits, p, lambda rows, limits: whole(rows, None, limits))

    untyped.apply_top_k_top_p = apply


def engine_argument_names() -> set[str]:
    """Return the names of the arguments that the installed vLLM's engine has."""
    from vllm.engine.arg_utils import EngineArgs

    return {field.name for field in dataclasses.fields(EngineArgs) if not field.name.startswith("_")}


def _check_options(settings: SamplerSettings) -> None:
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    check_engine_args(settings.engine_args, engine_argument_names())
    check_quantization(settings.quantization, QUANTIZATION_METHODS)


def _check_devices(settings: SamplerSettings, *, devices: int) -> None:
    stages = settings.engine_args.get("pipeline_parallel_size", 1)
    if not isinstance(stages, int) or settings.tensor_parallel_size * stages <= devices:
        return
    product = f" and needs {stages} times as many with engineArgs.pipeline_parallel_size" if stages > 1 else ""
    raise ConfigError(
        "sampling.tensorParallelSize",
        settings.tensor_parallel_size,
        f"this pod has {devices} GPUs{product}",
        "Request as many GPUs in the sampling pods' resources, or lower it.",
    )


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


def _visible_devices() -> int:
    import torch

    return torch.cuda.device_count()


def start_failure(
    error: Exception, model: ResolvedModel, settings: SamplerSettings, output: Sequence[str]
) -> WrpoError:
    """Return what it means for the stage that the engine did not start; `output` holds the lines of its processes."""
    if isinstance(error, OSError) and (known := storage_error(error)) is not None:
        return known
    fault = fault_of(error, output)
    if fault.is_kv_cache:
        for name in _KV_CACHE_ARGUMENTS:
            if name in settings.engine_args:
                field, value = f"sampling.engineArgs.{name}", settings.engine_args[name]
                return ConfigError(field, value, fault.line, "Raise it, or leave it out.", code="ModelInvalid")
    if fault.meaning is Meaning.UNUSABLE:
        given = ", ".join(f"{name}={value}" for name, value in settings.engine_args.items())
        return model.directory.invalid(
            f"vLLM cannot load it{f' with {given}'[:200] if given else ''}: {fault.line}",
            "Check sampling.maxModelLength, dtype, quantization, engineArgs, tensorParallelSize and "
            "gpuMemoryUtilization, or set sampling.backend: Transformers.",
        )
    what = f"vLLM did not start with {model.identity}"
    if fault.meaning is Meaning.MEMORY:
        return _out_of_memory(f"{what}: {fault.line}", is_kv_cache=fault.is_kv_cache)
    return TemporaryError(f"{what}: {fault.line}", code="EngineStartFailed", hint=_hint(fault.line))


def run_failure(error: Exception, output: Sequence[str]) -> WrpoError:
    """Return what it means for the stage that the running engine failed. All of it may be retried."""
    fault = fault_of(error, output)
    if fault.meaning is Meaning.MEMORY:
        return _out_of_memory(f"vLLM's engine died: {fault.line}", is_kv_cache=fault.is_kv_cache)
    return TemporaryError(f"vLLM's engine died: {fault.line}", code="EngineDied", hint=_hint(fault.line))


def _hint(line: str) -> str:
    return f"{_KILLED} {_KEPT}" if "signal 9" in line or ": -9" in line else _KEPT


def _out_of_memory(message: str, *, is_kv_cache: bool) -> WrpoError:
    """Return the error whose code makes the operator give the stage more room where it may choose."""
    if is_kv_cache:
        hint = "Raise sampling.gpuMemoryUtilization or tensorParallelSize, or lower maxModelLength or maxTokens."
    else:
        hint = "Lower sampling.gpuMemoryUtilization, maxModelLength or maxTokens, or raise tensorParallelSize."
    return WrpoError(message, code="OutOfMemory", field="sampling.gpuMemoryUtilization", hint=hint)
