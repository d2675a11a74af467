"""Why vLLM's engine failed: its exception, or the lines that its processes logged. Pure.

With the engine in separate processes, as on GPUs, vLLM raises an exception without the cause. The cause is in their
output, where exceptions of other processes follow it, because those lost their peer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

_SHOWN = 400
_PREFIX = re.compile(
    r"^\((?P<process>\w[\w-]*)[^)]*\) (?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d (?:\.\d+ )?\[[^\]]*\] ?)?|^\[rank\d+\]: ?"
)
"""What vLLM's logging and torch put before a line: process, level, time, place."""
_EXCEPTION = re.compile(
    r"^(?P<kind>(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|OutOfResources|NotImplemented))(?:: (?P<text>.*))?$"
)
_NATIVE = re.compile(
    r"^(?:  what\(\):  |Fatal Python error: )(?P<text>\S.*)$"
    r"|^(?P<killed>Worker proc \S+ died .*\(exit code: -(?!15\))\d+\))"
)
"""The last message of C++ and of the interpreter, and a process that a signal ended; SIGTERM (15) is vLLM's own."""
_PARTS = re.compile(r"\d+ validation errors? for ")
_CONSEQUENCE = re.compile(
    r"See (?:root cause|stack trace)|WorkerProc initialization failed|Executor failed|encountered an issue"
    r"|EngineDeadError|process ended with (?!signal 9$)",
    re.IGNORECASE,
)
_LOST_PEER = re.compile(
    r"^(?:EOFError|BrokenPipeError|Connection\w*Error|(?:\w+\.)*Dist\w*Error|(?:\w+\.)*Cancelled\w*)\b"
    r"|Connection (?:closed|reset) by peer|remote process exited|Broken pipe"
)
_MEMORY = re.compile(
    r"OutOfMemory|MemoryError|out of memory|[Nn]o available memory|[Cc]annot allocate memory|not enough memory"
    r"|Free memory on device|CUBLAS_STATUS_ALLOC_FAILED|KV cache is needed|available KV cache|stored in KV cache"
)
_KV_CACHE = re.compile(r"(?i)cache blocks|KV cache")
_OF_THE_MACHINE = re.compile(
    r"^(?:OSError|IOError|TimeoutError|Interrupted\w*|PermissionError|BlockingIOError|FileNotFoundError"
    r"|Connection\w*Error|BrokenPipeError|EOFError|ChildProcessError|ProcessLookupError"
    r"|(?:\w+\.)*(?:ZMQError|AcceleratorError|Dist\w*Error|SafetensorError))(?::|$)"
    r"|CUDA error|NCCL error|No space left on device"
)
"""Storage, network, devices, other processes: another node or a later time may do."""
_UNUSABLE = re.compile(
    r"(?i)not supported|unsupported|does(?:n't| not) support|only supports?\b|divisible|size mismatch|not implemented"
    r"|no kernel image is available|compute capability|unrecognized|not a valid|unknown|must be|invalid argument"
)
"""A RuntimeError that says one of these returns with every attempt."""
_PYTHON_KIND = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|NotImplemented)(?::|$)")


class Meaning(IntEnum):
    """What a failure means for the stage; of several lines, one with the greatest value counts."""

    LOST_PEER = 0
    """Another process ended first; a retry may succeed."""
    TEMPORARY = 1
    """A retry may succeed."""
    UNUSABLE = 2
    """The model or its settings; every attempt would end so."""
    MEMORY = 3
    """More memory would do."""


@dataclass(frozen=True)
class EngineFault:
    """The telling line of a failure, and its meaning."""

    meaning: Meaning
    line: str

    @property
    def is_kv_cache(self) -> bool:
        """Whether the weights fitted, and memory for the keys and values of the context was missing."""
        return self.meaning is Meaning.MEMORY and _KV_CACHE.search(self.line) is not None


def fault_of(error: BaseException, output: Sequence[str] = ()) -> EngineFault:
    """Return why the engine failed: by the lines of its processes if the exception itself does not say it."""
    own = EngineFault(meaning_of(_line_of(error)), first_words(error))
    if not _is_consequence(error):
        return own
    return fault_in(output) or own


def fault_in(output: Sequence[str]) -> EngineFault | None:
    """Return why a process failed, by the lines that it logged; None if none of them says it."""
    return max(_faults(output), key=lambda fault: fault.meaning, default=None)


def meaning_of(line: str) -> Meaning:
    """Return what `KIND: TEXT`, the last line of a traceback, means."""
    if _MEMORY.search(line):
        return Meaning.MEMORY
    if _LOST_PEER.search(line):
        return Meaning.LOST_PEER
    if _OF_THE_MACHINE.search(line):
        return Meaning.UNUSABLE if "no kernel image" in line else Meaning.TEMPORARY
    if line.startswith("RuntimeError"):
        return Meaning.UNUSABLE if _UNUSABLE.search(line) else Meaning.TEMPORARY
    return Meaning.UNUSABLE if _PYTHON_KIND.match(line) else Meaning.TEMPORARY


def first_words(error: BaseException) -> str:
    """Return the line of an exception that says what is wrong; pydantic's errors say it in their parts."""
    details = getattr(error, "errors", None)
    if callable(details):
        parts = details()
        if parts:
            where = ".".join(str(part) for part in parts[0].get("loc", ()))
            return f"{where}: {parts[0].get('msg', '')}"[:_SHOWN].lstrip(": ")
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:_SHOWN]


def exception_lines(output: Iterable[str]) -> Iterator[str]:
    """Yield `KIND: TEXT` for every exception and native abort that the lines of the engine's processes show."""
    lines = [_PREFIX.sub("", line.rstrip()) for line in output]
    for place, line in enumerate(lines):
        native = _NATIVE.match(line)
        if native is not None:
            yield (native["text"] or native["killed"])[:_SHOWN]
        elif _EXCEPTION.match(line):
            details = lines[place + 1 : place + 3] if _PARTS.search(line) else []
            yield " ".join([line, *(detail.strip() for detail in details)])[:_SHOWN]


def _faults(output: Sequence[str]) -> list[EngineFault]:
    """Return the faults in the output, the last first: of a chain of exceptions that is the one that says most."""
    lines = [line for line in exception_lines(output) if not _CONSEQUENCE.search(line)]
    return [EngineFault(meaning_of(line), line) for line in reversed(lines)]


def _line_of(error: BaseException) -> str:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    # Libraries derive from Python's own kinds, whose meaning is known.
    for kind in ("MemoryError", "OSError", "RuntimeError"):
        if kind in kinds and kind != type(error).__name__ and meaning_of(type(error).__name__) is Meaning.UNUSABLE:
            return f"{kind}: {error}"
    return f"{type(error).__name__}: {error}"


def _is_consequence(error: BaseException) -> bool:
    return bool(_CONSEQUENCE.search(f"{type(error).__name__}: {error}"))
