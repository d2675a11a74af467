"""A judge of the stage's own: a server on the loopback, as a child process, for the stage's time."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from wrpo_engine.config import Runtime
from wrpo_engine.contract.evaluation import BenchmarkJudge
from wrpo_engine.hub.client import section_of
from wrpo_engine.hub.models import resolve_model
from wrpo_engine.judging.client import KEY_VARIABLE
from wrpo_engine.judging.own_server import START_VARIABLE, OwnServer, Program, Served, running_server
from wrpo_engine.judging.section import judge_section
from wrpo_engine.retrying import seconds_of
from wrpo_engine.sampling.options import check_engine_args, pinned_formats
from wrpo_engine.stage import StageContext

_START_S = 1800.0
_HOST = "127.0.0.1"
_PORTS = range(10_000, 20_000)
"""Below the ports that the system gives to connections, because the server listens only when its model is loaded."""
_HIDDEN = frozenset({KEY_VARIABLE, "WRPO_TERMINATION_MESSAGE_PATH", "JOB_COMPLETION_INDEX"})
"""Variables of the stage that its server must not have: it needs no key, and it is not the stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnJudge:
    """The stage's own judge."""

    endpoint: str
    """Base URL."""
    server: OwnServer


@contextlib.contextmanager
def serving(ctx: StageContext, params: BenchmarkJudge) -> Iterator[OwnJudge | None]:
    """Yield the stage's own judge, which ends with the block; None if the stage has none."""
    if params.serve is None and params.serve_reward is None:
        yield None
        return
    port = _free_port()
    command = _vllm(ctx, params, port) if params.serve is not None else _reward_server(ctx, params, port)
    environ = {name: value for name, value in {**os.environ, **ctx.environ}.items() if name not in _HIDDEN}
    with running_server(
        Program(command, environ, health=f"http://{_HOST}:{port}/health"),
        _served(ctx, params),
        patience_s=seconds_of(ctx.environ, START_VARIABLE, _START_S),
        check=ctx.stop.raise_if_requested,
    ) as server:
        yield OwnJudge(endpoint=f"http://{_HOST}:{port}/v1", server=server)


def _served(ctx: StageContext, params: BenchmarkJudge) -> Served:
    section = judge_section(ctx.config.runtime)
    if params.serve is not None:
        return Served(field=_model_field(ctx), name=params.model)
    return Served(field=f"{section}.serveReward", name=params.model)


def _model_field(ctx: StageContext) -> str:
    return ctx.model_field("serve", f"{judge_section(ctx.config.runtime)}.serve.model")


def _vllm(ctx: StageContext, params: BenchmarkJudge, port: int) -> list[str]:
    assert params.serve is not None
    model = resolve_model(params.serve, ctx, field=_model_field(ctx))
    if params.engine_args:
        from wrpo_engine.sampling.vllm_sampler import engine_argument_names

        check_engine_args(params.engine_args, engine_argument_names(), served=section_of(_model_field(ctx)))
    arguments = vllm_arguments(params, ctx.config.runtime, on_cpu=not _has_gpu())
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model.path)),
        *("--served-model-name", params.model, "--host", _HOST, "--port", str(port)),
        # The model's own sampling defaults must not change what a request does not name.
        *("--generation-config", "vllm"),
        # Lines about single requests would hide why the server ended.
        "--disable-uvicorn-access-log",
        *arguments,
    ]
    if model.trust_remote_code:
        command.append("--trust-remote-code")
    if params.serve.chat_template is not None:
        command += ["--chat-template", params.serve.chat_template]
    return command


def vllm_arguments(params: BenchmarkJudge, runtime: Runtime, *, on_cpu: bool) -> list[str]:
    """Return the arguments of vLLM's server besides the model's; engine_args come last and take precedence."""
    options: dict[str, Any] = {"enable_prefix_caching": True, "max_num_seqs": max(16, runtime.judge_concurrency)}
    if runtime.tensor_parallel_size > 1:
        options["tensor_parallel_size"] = runtime.tensor_parallel_size
    if params.max_model_length is not None:
        options["max_model_len"] = params.max_model_length
    if runtime.gpu_memory_utilization is not None:
        options["gpu_memory_utilization"] = runtime.gpu_memory_utilization
    if on_cpu:
        options |= {"enforce_eager": True, "dtype": "float32"}
        options.setdefault("gpu_memory_utilization", 0.3)
    arguments: list[str] = []
    options |= {**params.engine_args, **runtime.engine_args, **pinned_formats(params.engine_args)}
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is True or value is False:
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            arguments += [f"--{flag}", value if isinstance(value, str) else json.dumps(value)]
    return arguments


def _reward_server(ctx: StageContext, params: BenchmarkJudge, port: int) -> list[str]:
    reward = params.serve_reward
    assert reward is not None
    name = reward.identity
    if reward.name is not None:
        model = resolve_model(reward, ctx, field=ctx.model_field("serve_reward", _served(ctx, params).field))
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
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind((_HOST, port))
            return port
