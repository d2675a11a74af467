"""The cause of a failure of vLLM's engine, from its exception or from what its processes logged."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from support.patience import LIMIT_S

from wrpo_engine.config import ExitCode
from wrpo_engine.errors import ConfigError, StorageError, TemporaryError, WrpoError
from wrpo_engine.hub.models import ResolvedModel
from wrpo_engine.sampling.engine_faults import Meaning, exception_lines, fault_of, meaning_of
from wrpo_engine.sampling.engine_process import EngineOutput, EngineProcessDied, WatchedCall, started_processes
from wrpo_engine.sampling.sampler import SamplerSettings
from wrpo_engine.sampling.vllm_sampler import run_failure, start_failure

MODEL = ResolvedModel(Path("/models/m"), "org/m", None, field="sources[m].model")
SETTINGS = SamplerSettings(temperature=1.0, top_p=1.0, max_tokens=4, stop_token_ids=())
GENERIC = RuntimeError(
    "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
)
ENGINE = "(EngineCore pid=4711) ERROR 11-29 22:31:03 [core.py:1510] "
WORKER = "(Worker_TP3 pid=4712) ERROR 11-29 22:31:03 [multiproc_executor.py:935] "
WORKERS_END = (
    ENGINE + "Exception: WorkerProc initialization failed due to an exception in a background process. "
    "See stack trace for root cause."
)
KV = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`."
NEEDED = (
    "ValueError: To serve at least one request with the model's max seq len (32768), (4.0 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (1.2 GiB)."
)
FULL = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.31 GiB. GPU 3 has a total capacity of 79.1 GiB"
LOST = "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:4153, remote process exited"


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        (FULL, Meaning.MEMORY),
        (KV, Meaning.MEMORY),
        (NEEDED, Meaning.MEMORY),
        ("ValueError: Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired", Meaning.MEMORY),
        ("RuntimeError: CUDA error: out of memory", Meaning.MEMORY),
        ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", Meaning.MEMORY),
        ("MemoryError", Meaning.MEMORY),
        ("ValueError: Total number of attention heads (9) must be divisible by tensor parallel size", Meaning.UNUSABLE),
        ("AssertionError: 14336 is not divisible by 3", Meaning.UNUSABLE),
        ("AssertionError", Meaning.UNUSABLE),
        ("KeyError: 'model.layers.0.mlp.experts.w13_weight'", Meaning.UNUSABLE),
        ("RuntimeError: FP8 is not supported on this device", Meaning.UNUSABLE),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", Meaning.UNUSABLE),
        ("pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig", Meaning.UNUSABLE),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", Meaning.TEMPORARY),
        ("torch.AcceleratorError: CUDA error: unspecified launch failure", Meaning.TEMPORARY),
        ("OSError: [Errno 5] Input/output error: '/var/lib/wrpo/model.safetensors'", Meaning.TEMPORARY),
        ("TimeoutError: waited 600 s", Meaning.TEMPORARY),
        ("RuntimeError: something else", Meaning.TEMPORARY),
        ("Segmentation fault", Meaning.TEMPORARY),
        (LOST, Meaning.LOST_PEER),
        ("EOFError", Meaning.LOST_PEER),
    ],
)
def test_a_last_line_of_a_traceback_has_a_meaning(line: str, meaning: Meaning) -> None:
    assert meaning_of(line) is meaning


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ([ENGINE + "EngineCore failed to start.", ENGINE + "Traceback (most recent call last):", ENGINE + KV], KV),
        ([WORKER + FULL, WORKERS_END, "RuntimeError: Engine core initialization failed. See root cause above."], FULL),
        # Ranks that lost their peer say so later, and more often.
        ([WORKER + FULL, WORKER + LOST, WORKER + LOST, WORKERS_END], FULL),
        ([WORKER + "KeyError: 'w13'", WORKER + LOST, ENGINE + "RuntimeError: cancelled"], "KeyError: 'w13'"),
        # What is raised from another exception says more.
        ([WORKER + "ValueError: 3", WORKER + "ValueError: heads 3"], "ValueError: heads 3"),
        (
            ["terminate called after throwing", "  what():  CUDA error: device-side assert"],
            "CUDA error: device-side assert",
        ),
        (["Fatal Python error: Bus error", ""], "Bus error"),
        (
            [ENGINE + "Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor."],
            "Worker proc VllmWorker-1 died unexpectedly (exit code: -9)",
        ),
        (
            [
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for A",
                "  Value error, b is not c",
                "x",
            ],
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for A Value error, b is not c x",
        ),
        ([ENGINE + "Worker proc VllmWorker-0 died unexpectedly (exit code: -15)", "a line"], str(GENERIC)),
        ([], str(GENERIC)),
    ],
)
def test_the_telling_line_of_the_output_is_the_cause(output: list[str], line: str) -> None:
    assert fault_of(GENERIC, output).line == line


def test_an_exception_that_says_its_cause_needs_no_output() -> None:
    assert fault_of(ValueError("heads"), [ENGINE + FULL]).line == "heads"


def test_lines_that_only_look_like_exceptions_are_none() -> None:
    lines = ["  ValueError: indented", "WARNING: ValueError: x", "see RuntimeError: x", "Error", "http://a/Error: b"]
    assert list(exception_lines(lines)) == []


@pytest.mark.parametrize(
    ("output", "kind", "code", "exit_code", "message"),
    [
        ([WORKER + FULL], WrpoError, "OutOfMemory", ExitCode.UNEXPECTED, f"vLLM did not start with org/m: {FULL}"),
        ([ENGINE + KV], WrpoError, "OutOfMemory", ExitCode.UNEXPECTED, f"vLLM did not start with org/m: {KV}"),
        (
            [WORKER + "AssertionError: 10 is not divisible by 4"],
            ConfigError,
            "ModelInvalid",
            ExitCode.CONFIG,
            "sources[m].model is 'org/m': vLLM cannot load it: AssertionError: 10 is not divisible by 4",
        ),
        (
            [WORKER + LOST],
            TemporaryError,
            "EngineStartFailed",
            ExitCode.TEMPORARY,
            f"vLLM did not start with org/m: {LOST}",
        ),
    ],
)
def test_a_start_that_failed_in_the_engines_process_says_why(
    output: list[str], kind: type[WrpoError], code: str, exit_code: ExitCode, message: str
) -> None:
    error = start_failure(GENERIC, MODEL, SETTINGS, output)
    assert (type(error), error.code, error.exit_code, error.message) == (kind, code, exit_code, message)


def test_the_hint_for_missing_memory_fits_what_it_was_missing_for() -> None:
    cache = start_failure(GENERIC, MODEL, SETTINGS, [KV]).hint
    weights = start_failure(GENERIC, MODEL, SETTINGS, [FULL]).hint
    assert cache == "Raise sampling.gpuMemoryUtilization or tensorParallelSize, or lower maxModelLength or maxTokens."
    assert weights == "Lower sampling.gpuMemoryUtilization, maxModelLength or maxTokens, or raise tensorParallelSize."


def test_a_kv_cache_that_the_user_made_too_small_is_the_users_to_enlarge() -> None:
    settings = SamplerSettings(
        temperature=1.0, top_p=1.0, max_tokens=4, stop_token_ids=(), engine_args={"kv_cache_memory_bytes": 4096}
    )
    error = start_failure(GENERIC, MODEL, settings, [ENGINE + NEEDED])
    assert error.exit_code == ExitCode.CONFIG
    assert error.message == f"sampling.engineArgs.kv_cache_memory_bytes is 4096: {NEEDED}"


def test_a_full_disk_at_start_is_the_storages() -> None:
    error = start_failure(OSError(28, "No space left on device"), MODEL, SETTINGS, [])
    assert isinstance(error, StorageError)


def test_a_running_engine_that_fails_is_tried_again_whatever_the_reason() -> None:
    dead = RuntimeError("EngineCore encountered an issue. See stack trace (above) for the root cause.")
    invalid = run_failure(dead, [ENGINE + "AssertionError: block"])
    assert (invalid.code, invalid.exit_code) == ("EngineDied", ExitCode.TEMPORARY)
    assert invalid.message == "vLLM's engine died: AssertionError: block"
    assert run_failure(dead, [WORKER + FULL]).code == "OutOfMemory"
    killed = run_failure(EngineProcessDied("EngineCore's process ended with signal 9"), [ENGINE + KV])
    assert killed.message == "vLLM's engine died: EngineCore's process ended with signal 9"
    assert killed.hint is not None
    assert killed.hint.startswith("Signal 9 usually means that the host's memory ran out")


def test_output_of_processes_is_passed_on_and_its_end_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    output = EngineOutput(kept=3)
    script = "import os\nfor n in range(5): os.write(1, b'line %d\\n' % n)\nos.write(2, b'\\xfflast')"
    with output.captured():
        child = subprocess.Popen([sys.executable, "-c", f"{script}\ninput()"], stdin=subprocess.PIPE)
    print("own")
    # Also what comes after the block is kept.
    child.communicate(b"\n")
    assert output.lines() == ["line 2", "line 3", "line 4", "\ufffdlast"]
    sys.stdout.flush()
    shown = capfd.readouterr()
    assert [line for line in shown.out.splitlines() if line != "own"] == [f"line {n}" for n in range(5)]
    assert "last" in shown.err
    assert "own\n" in shown.out


def test_output_is_kept_while_nobody_asks_for_it() -> None:
    output = EngineOutput(kept=2)
    with output.captured():
        # More than a pipe holds: the processes must not wait.
        subprocess.run([sys.executable, "-c", "print('x' * 100 + '\\n' * 200000, end='end')"], check=True)
    assert output.lines()[-1] == "end"


def test_the_place_of_output_is_restored_and_its_pipes_are_closed() -> None:
    before = [os.fstat(standard).st_ino for standard in (1, 2)]
    threads = set(threading.enumerate())
    output = EngineOutput()
    with output.captured():
        (reader,) = set(threading.enumerate()) - threads
    assert [os.fstat(standard).st_ino for standard in (1, 2)] == before
    # No process has them any more.
    reader.join(timeout=LIMIT_S)
    assert not reader.is_alive()


def _wait_for_ever() -> None:
    threading.Event().wait()


def _started(context: Any) -> tuple[BaseProcess, list[BaseProcess]]:
    with started_processes() as processes:
        process = context.Process(target=_wait_for_ever, name="EngineCore", daemon=True)
        process.start()
    return process, processes


def test_a_call_that_waits_for_a_killed_process_ends() -> None:
    process, processes = _started(multiprocessing.get_context("fork"))
    assert processes == [process]
    call = WatchedCall(_wait_for_ever, processes, poll_s=0.01, grace_s=0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineProcessDied) as error:
        call()
    assert str(error.value) == "EngineCore's process ended with signal 9"


def test_the_error_of_a_dead_process_counts_if_it_came() -> None:
    process, processes = _started(multiprocessing.get_context("fork"))
    process.kill()
    process.join()

    def call() -> None:
        raise ValueError("its own words")

    with pytest.raises(ValueError, match="its own words"):
        WatchedCall(call, processes)()
    assert WatchedCall(lambda: 5, processes)() == 5
