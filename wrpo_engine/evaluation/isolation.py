"""Sampling of one model in a separate process: inference engines keep memory and global state until they exit."""

from __future__ import annotations

import multiprocessing
import traceback
from multiprocessing.connection import Connection
from typing import Any

import polars as pl

from wrpo_engine import errors
from wrpo_engine.config import ExitCode
from wrpo_engine.errors import TemporaryError, WrpoError
from wrpo_engine.evaluation.answers import AnswerJob, OnAnswer, answer
from wrpo_engine.sampling.engine_process import exit_reason
from wrpo_engine.stage import StopRequest

_POLL_S = 0.5
_KILL_AFTER_S = 10.0
_KILLED = "Signal 9 usually means that memory ran out: give the evaluate stage more (resources.evaluate)."
_HUNG = "It made no progress for too long; the pod's log shows the stacks of its threads."
_DONE, _ROWS, _ERROR, _CRASH = "done", "rows", "error", "crash"


def answer_in_process(job: AnswerJob, on_answer: OnAnswer, stop: StopRequest) -> pl.DataFrame:
    """Run `answer` in a child process; errors of the engine are raised here with their class."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(job, sender), name=f"evaluate-{job.label}", daemon=False)
    process.start()
    sender.close()
    try:
        while True:
            stop.raise_if_requested()
            if not receiver.poll(_POLL_S):
                continue
            try:
                kind, value = receiver.recv()
            except EOFError:
                process.join()
                raise _died(job.label, process.exitcode) from None
            if kind == _DONE:
                on_answer(value)
            elif kind == _ROWS:
                process.join()
                rows: pl.DataFrame = value
                return rows
            else:
                process.join()
                raise _rebuilt(value) if kind == _ERROR else RuntimeError(value)
    finally:
        _end(process)
        receiver.close()


def _child(job: AnswerJob, sender: Connection) -> None:
    try:
        rows = answer(job, lambda done: sender.send((_DONE, done)))
    except WrpoError as error:
        sender.send((_ERROR, (type(error).__name__, error.info().model_dump())))
    except Exception:  # noqa: BLE001 (the process's outermost frame; the parent raises it)
        sender.send((_CRASH, traceback.format_exc()))
    else:
        sender.send((_ROWS, rows))


def _rebuilt(value: tuple[str, dict[str, Any]]) -> WrpoError:
    """Return an error of the class it had in the child; constructors differ, so the base's is called."""
    name, info = value
    kind: type[WrpoError] = getattr(errors, name)
    error = kind.__new__(kind)
    WrpoError.__init__(error, info["message"], code=info["code"], field=info["field"], hint=info["hint"])
    return error


def _died(label: str, exit_code: int | None) -> WrpoError:
    return TemporaryError(
        f"the process that samples from {label} ended with {exit_reason(exit_code)} before it was done",
        code="EvaluationProcessDied",
        hint=_HUNG if exit_code == ExitCode.TEMPORARY else _KILLED,
    )


def _end(process: Any) -> None:
    if process.is_alive():
        process.terminate()
        process.join(_KILL_AFTER_S)
    if process.is_alive():
        process.kill()
        process.join()
