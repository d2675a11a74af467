"""A judge of the stage's own: a server on the loopback, as a child process, for the stage's time."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wrpo_engine.config import Runtime
from wrpo_engine.contract.evaluation import JudgeParams
from wrpo_engine.contract.exit_codes import FINAL_EXIT_CODES
from wrpo_engine.errors import ConfigError, TemporaryError, WrpoError
from wrpo_engine.hub.models import resolve_model
from wrpo_engine.judging.client import KEY_VARIABLE
from wrpo_engine.retrying import seconds_of
from wrpo_engine.stage import StageContext

log = logging.getLogger("wrpo_engine")

START_VARIABLE = "WRPO_JUDGE_START_SECONDS"
_START_S = 1800.0
_END_S = 20.0
"""Seconds for the server to end by itself."""
_HOST = "127.0.0.1"
_TAIL_LINES = 20
_POLL_S = 0.2
_PR_SET_PDEATHSIG = 1
_HIDDEN = frozenset({KEY_VARIABLE, "WRPO_TERMINATION_MESSAGE_PATH", "JOB_COMPLETION_INDEX"})
"""Variables of the stage that its server must not have: it needs no key, and it is not the stage."""


@contextlib.contextmanager
def serving(ctx: StageContext, params: JudgeParams) -> Iterator[str | None]:
    """Yield the base URL of the stage's own judge, which ends with the block; None if the stage has none."""
    if params.serve is None and params.serve_reward is None:
        yield None
        return
    port = _free_port()
    command = _vllm(ctx, params, port) if params.serve is not None else _reward_server(ctx, params, port)
    patience_s = seconds_of(ctx.environ, START_VARIABLE, _START_S)
    with running_server(
        command, f"http://{_HOST}:{port}/health", ctx.environ, patience_s=patience_s, check=ctx.stop.raise_if_requested
    ):
        yield f"http://{_HOST}:{port}/v1"


def _vllm(ctx: StageContext, params: JudgeParams, port: int) -> list[str]:
    assert params.serve is not None
    model = resolve_model(params.serve, ctx, field=ctx.model_field("serve", "evaluation.judges.serve.model"))
    arguments = vllm_arguments(ctx.config.runtime, on_cpu=not _has_gpu())
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model.path)),
        *("--served-model-name", params.model, "--host", _HOST, "--port", str(port)),
        # The model's own sampling defaults must not change what a request does not name.
        *("--generation-config", "vllm"),
        *arguments,
    ]
    if model.trust_remote_code:
        command.append("--trust-remote-code")
    if params.serve.chat_template is not None:
        command += ["--chat-template", params.serve.chat_template]
    return command


def vllm_arguments(runtime: Runtime, *, on_cpu: bool) -> list[str]:
    """Return the arguments of vLLM's server that the runtime gives; engine_args come last and take precedence."""
    options: dict[str, Any] = {"enable_prefix_caching": True, "max_num_seqs": max(16, runtime.judge_concurrency)}
    if runtime.tensor_parallel_size > 1:
        options["tensor_parallel_size"] = runtime.tensor_parallel_size
    if runtime.gpu_memory_utilization is not None:
        options["gpu_memory_utilization"] = runtime.gpu_memory_utilization
    if on_cpu:
        options |= {"enforce_eager": True, "dtype": "float32"}
        options.setdefault("gpu_memory_utilization", 0.3)
    arguments: list[str] = []
    for name, value in {**options, **runtime.engine_args}.items():
        flag = name.replace("_", "-")
        if value is True or value is False:
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            arguments += [f"--{flag}", value if isinstance(value, str) else json.dumps(value)]
    return arguments


def _reward_server(ctx: StageContext, params: JudgeParams, port: int) -> list[str]:
    reward = params.serve_reward
    assert reward is not None
    name = reward.identity
    if reward.name is not None:
        model = resolve_model(reward, ctx, field=ctx.model_field("serve_reward", "evaluation.judges.serveReward"))
        name = str(model.path)
    command = [
        *(sys.executable, "-m", "wrpo_engine", "judge-server", "--reward", name, "--name", params.model),
        *("--host", _HOST, "--port", str(port), "--batch-tokens", str(ctx.config.runtime.batch_tokens)),
    ]
    if reward.endpoint_model is not None:
        command += ["--endpoint-model", reward.endpoint_model]
    return command


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((_HOST, 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def running_server(
    command: Sequence[str],
    health: str,
    environ: Mapping[str, str],
    *,
    patience_s: float,
    check: Callable[[], None] = lambda: None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server and yield it once its health URL replies; end it and its children in all cases.

    `check` is called while it starts, and may raise. A server that ends first is a ConfigError if its exit code is
    final, otherwise a TemporaryError; both show its last lines.
    """
    with tempfile.TemporaryDirectory(prefix="wrpo-judge-") as directory:
        path = Path(directory) / "server.log"
        with path.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in {**os.environ, **environ}.items() if name not in _HIDDEN},
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 (one call of libc, before the child is a program)
            )
        try:
            _wait_until_healthy(process, health, path, patience_s=patience_s, check=check)
            yield process
        finally:
            _end(process)


def _end_with_parent() -> None:
    """Let the kernel end the child with the thread that started it, also if that is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_until_healthy(
    process: subprocess.Popen[bytes], health: str, path: Path, *, patience_s: float, check: Callable[[], None]
) -> None:
    log.info("the judge's server starts: %s", " ".join(process.args[2:] if isinstance(process.args, list) else ()))
    deadline = time.monotonic() + patience_s
    pause = threading.Event()
    while not _is_healthy(health):
        check()
        if process.poll() is not None:
            raise _ended(process.returncode, path)
        if time.monotonic() > deadline:
            raise TemporaryError(
                f"the judge's server was not ready within {patience_s:g} s; its last lines:\n{_tail(path)}",
                code="JudgeServerFailed",
                field="evaluation.judges.serve",
                hint=f"The stage is retried. Set {START_VARIABLE} for a model that loads longer.",
            )
        pause.wait(_POLL_S)


def _is_healthy(url: str) -> bool:
    # No proxy: it is this pod.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5.0) as answer:
            status: int = answer.status
            return 200 <= status < 300
    except OSError:
        return False


def _ended(code: int, path: Path) -> WrpoError:
    text = f"the judge's server ended with exit code {code}; its last lines:\n{_tail(path)}"
    if code in FINAL_EXIT_CODES:
        return ConfigError("evaluation.judges.serve", "set", text, "Correct the judge.", code="JudgeServerFailed")
    return TemporaryError(
        text,
        code="JudgeServerFailed",
        field="evaluation.judges.serve",
        hint="Check the model and the resources of the judge. The stage is retried; replies are kept.",
    )


def _tail(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        # The group: vLLM's workers are children of its server.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
