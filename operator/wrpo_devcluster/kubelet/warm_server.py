"""Warm process of the node: it has imported a program's modules, and forks the processes of containers from itself.

Usage: python -m wrpo_devcluster.kubelet.warm_server MODULE, with a socket to the kubelet as stdin. It writes `ready`.
A request is a line of JSON: the paths of a spec and of the supervisor's log. The reply is `started` once the supervisor
runs, or `no` and a reason if the container has to start as usual. The process ends when the socket is closed.

MODULE belongs to the program (see `Program`). A forked process differs from a started one in what imports have done:

- What they read from the environment must equal what they would read in the container. All reads are recorded. Paths
  below HOME are replaced by those of the container, and MODULE settles a few variables after the fork.
- No thread may run, because a fork would lose it together with the locks that it holds.
- After a change of the program's files the process ends, and the kubelet starts another one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import threading
import traceback
from collections.abc import ItemsView, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Protocol, TextIO, cast

from wrpo_devcluster.kubelet import shim
from wrpo_devcluster.kubelet.records import MARKER

READY, STARTED, REFUSED = "ready", "started", "no"
MARKER_ROOM = 250
"""Bytes of the longest value of MARKER, which is put where the placeholder was in the environment on the stack."""
_LOOK_S = 1.0
_PR_SET_NAME = 15
_UNBUFFERED = "PYTHONUNBUFFERED"
_ENV_START = 47
"""Place of env_start in /proc/PID/stat, counted after the name; env_end is the next."""


class Program(Protocol):
    """What MODULE defines."""

    COMMANDS: tuple[tuple[str, ...], ...]
    """First words of the commands that are forked: a script of the interpreter's directory, or `python -m MODULE`."""
    QUIET: Mapping[str, str]
    """Variables that keep libraries from starting threads while they are imported. Containers do not get them."""
    SETTLED: frozenset[str]
    """Variables that may differ although imports read them, because `adopt` applies them."""
    NATIVE: tuple[str, ...]
    """Beginnings of the names that compiled libraries read unseen, or that libraries look for among all names."""

    def prepare(self, environ: MutableMapping[str, str]) -> None:
        """Set what the program sets itself before it imports its libraries."""

    def load(self) -> None:
        """Import the modules."""

    def can_adopt(self, environ: Mapping[str, str]) -> bool:
        """Return whether `adopt` understands the values of the settled variables."""

    def adopt(self, environ: Mapping[str, str]) -> None:
        """Apply the settled variables in the container's process, and seed generators of random numbers."""

    def sources(self) -> list[Path]:
        """Return the files and directories whose change makes the imported modules stale."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What imports have read from the environment and done to it."""

    home: str
    before: Mapping[str, str]
    """The environment before the imports."""
    reads: Mapping[str, str | None]
    """What was read; None: it was not set."""
    added: Mapping[str, str]
    """What the imports set."""
    paths: tuple[tuple[Any, str, str | PurePath], ...]
    """Constants of modules and classes that hold a path below `home`: owner, name, value."""


@contextlib.contextmanager
def recorded_reads() -> Iterator[dict[str, str | None]]:
    """Record the first value of each environment variable that Python code reads by its name.

    Code that goes through all variables looks for names with a certain beginning (see `Program.NATIVE`).
    """
    kind = type(os.environ)
    original = kind.__getitem__
    reads: dict[str, str | None] = {}
    going_through = ItemsView.__iter__.__code__

    def read(self: Any, name: str) -> str:
        is_named = sys._getframe(1).f_code is not going_through  # noqa: SLF001
        value: str | None = None
        try:
            value = original(self, name)
        finally:
            if is_named:
                reads.setdefault(name, value)
        return value

    kind.__getitem__ = read  # type: ignore[method-assign]
    try:
        yield reads
    finally:
        kind.__getitem__ = original  # type: ignore[method-assign]


def load(program: Program) -> Imported:
    """Import the program's modules."""
    program.prepare(os.environ)
    before = dict(os.environ)
    os.environ.update(program.QUIET)
    with recorded_reads() as reads:
        program.load()
    for name in program.QUIET:
        reads[name] = before.get(name)
        os.environ.pop(name, None)
    # Each container has its own.
    reads.pop(MARKER, None)
    after = dict(os.environ)
    added = {name: value for name, value in after.items() if before.get(name) != value}
    home = os.environ["HOME"]
    return Imported(home=home, before=before, reads=reads, added=added, paths=tuple(_paths_below(home)))


def difference(program: Program, imported: Imported, environ: Mapping[str, str]) -> str | None:
    """Return a variable that imports would have read otherwise in a container; None if there is none."""
    wanted: dict[str, str] = dict(environ)
    program.prepare(wanted)
    home = wanted.get("HOME", "")
    names = {name for name in {**imported.before, **wanted} if name.startswith(program.NATIVE)}
    for name in sorted(names | imported.reads.keys()):
        known = imported.reads[name] if name in imported.reads else imported.before.get(name)
        if known is not None:
            known = moved(known, imported.home, home)
        if wanted.get(name) != known and name not in program.SETTLED and name != _UNBUFFERED:
            return name
    return None if program.can_adopt(wanted) else ", ".join(sorted(program.SETTLED))


def moved(path: str, old: str, new: str) -> str:
    """Return a path below `old` as one below `new`; other texts as they are."""
    return new + path[len(old) :] if path == old or path.startswith(f"{old}/") else path


def _paths_below(home: str) -> list[tuple[Any, str, str | PurePath]]:
    found: list[tuple[Any, str, str | PurePath]] = []
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if _is_below(value, home):
                found.append((module, name, value))
            elif issubclass(type(value), type) and value.__module__ == getattr(module, "__name__", ""):
                found += [(value, each, path) for each, path in vars(value).items() if _is_below(path, home)]
    return found


def move_paths(imported: Imported, home: str) -> None:
    """Let the constants that imports have made of HOME refer to another one."""
    for owner, name, value in imported.paths:
        with contextlib.suppress(AttributeError, TypeError):
            setattr(owner, name, type(value)(moved(str(value), imported.home, home)))


def _is_below(value: object, home: str) -> bool:
    # By its type, because objects that stand for others warn or compute when they are asked for their class.
    return issubclass(type(value), str | PurePath) and str(value).startswith(home)


def unsafe() -> str | None:
    """Return why a fork would not be sound; None if it is."""
    tasks = len(list(Path("/proc/self/task").iterdir()))
    if threading.active_count() == 1 and tasks == 1:
        return None
    return f"{tasks} threads run"


class Server:
    """Decides on requests, and forks."""

    def __init__(
        self, program: Program, imported: Imported, sources: tuple[tuple[str, int], ...], connection: socket.socket
    ) -> None:
        self._imported = imported
        self._program = program
        self._connection = connection
        self._sources = sources

    def serve(self) -> dict[str, Any] | None:
        """Serve requests. Return None at the end, and the spec in the process of a container."""
        pending = b""
        while True:
            readable, _, _ = select.select([self._connection], [], [], _LOOK_S)
            _reap()
            if not readable:
                continue
            chunk = self._connection.recv(65536)
            if not chunk:
                return None
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                spec_file, log_file = json.loads(line)
                spec = shim.read_spec(spec_file)
                reason = self._refusal(spec)
                if reason is not None:
                    self._say(f"{REFUSED} {reason}")
                    if self._is_stale():
                        return None
                elif os.fork() == 0:
                    return self._supervise(spec, log_file)

    def _refusal(self, spec: Mapping[str, Any]) -> str | None:
        argv, env = spec["argv"], spec["env"]
        if not _is_served(self._program, argv, env.get("PATH", os.defpath)):
            return "it runs another program"
        if self._is_stale():
            return "files of the program have changed"
        if len(env.get(MARKER, "")) > MARKER_ROOM:
            return f"{MARKER} is too long"
        name = difference(self._program, self._imported, env)
        return f"{name} differs" if name is not None else unsafe()

    def _is_stale(self) -> bool:
        return _state_of(self._program.sources()) != self._sources

    def _supervise(self, spec: dict[str, Any], log_file: str) -> dict[str, Any]:
        """Become the container's supervisor, and return in the container's process only."""
        try:
            os.setsid()
            log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            # From here on the container counts as started. If the kubelet has given up, this fails, and nothing starts.
            self._say(STARTED)
            self._connection.close()
            pid, output, trouble = shim.fork_container(spec)
            if pid:
                shim.supervise(spec, pid, output, trouble)
        except Exception:  # noqa: BLE001 (the supervisor's outermost frame)
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
        if pid:
            os._exit(0)
        os.close(trouble)
        return spec

    def _say(self, text: str) -> None:
        self._connection.sendall(f"{text}\n".encode())


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _state_of(paths: list[Path]) -> tuple[tuple[str, int], ...]:
    state = []
    for path in sorted(paths):
        with contextlib.suppress(OSError):
            state.append((str(path), path.stat().st_mtime_ns))
    return tuple(state)


def _is_served(program: Program, argv: list[str], path: str) -> bool:
    """Return whether a command is one of the program's, run by this interpreter."""
    if not any(tuple(argv[: len(command)]) == command for command in program.COMMANDS):
        return False
    found = shutil.which(argv[0], path=path)
    return found is not None and Path(found).parent == Path(sys.executable).parent


def _mark(name: str, value: str) -> bool:
    """Write a variable's value where /proc/PID/environ shows it, over the placeholder with which this process started.

    The C library must not refer to the place any more.
    """
    stat = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    start, end = int(stat[_ENV_START]), int(stat[_ENV_START + 1])
    area = b"\0" + ctypes.string_at(start, end - start) if start else b""
    at = area.find(f"\0{name}=".encode())
    if at < 0:
        return False
    room = area.index(b"\0", at + 1) - at - 1
    text = f"{name}={value}".encode()
    if len(text) > room:
        return False
    ctypes.memset(start + at, 0, room)
    ctypes.memmove(start + at, text, len(text))
    return True


def _unbuffered(stream: TextIO) -> TextIO:
    raw = io.FileIO(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(cast(BinaryIO, raw), encoding=stream.encoding, errors=stream.errors, write_through=True)


def become(program: Program, imported: Imported, spec: Mapping[str, Any]) -> None:
    """Run the container's command in this process. It ends the process as one that was started would end."""
    env, argv = dict(spec["env"]), list(spec["argv"])
    os.environ.clear()
    os.environ.update(env)
    # As after the imports; they would not have changed what the container sets.
    os.environ.update(imported.added)
    _mark(MARKER, env.get(MARKER, ""))
    move_paths(imported, env.get("HOME", ""))
    if env.get(_UNBUFFERED):
        sys.stdout, sys.stderr = _unbuffered(sys.stdout), _unbuffered(sys.stderr)
    # Python's own settings, which the supervisor has reset for a program of any kind.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, Path(argv[0]).name.encode()[:15])
    program.adopt(os.environ)
    found = shutil.which(argv[0], path=env.get("PATH", os.defpath)) or argv[0]
    if argv[1:2] == ["-m"]:
        sys.argv, sys.path[0] = argv[2:], spec["cwd"]
        runpy.run_module(argv[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [found, *argv[1:]], str(Path(found).parent)
        runpy.run_path(found, run_name="__main__")


def main(module: str) -> None:
    """Import the program's modules, and serve until the kubelet ends."""
    connection = socket.socket(fileno=os.dup(0))
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    program = cast(Program, importlib.import_module(module))
    sources = _state_of(program.sources())
    imported = load(program)
    reason = unsafe()
    if reason is None and not _mark(MARKER, "-" * MARKER_ROOM):
        reason = "the environment cannot be marked"
    if reason is not None:
        print(f"warm starts are off: {reason}", file=sys.stderr)
        return
    gc.collect()
    # Collections in the containers leave these objects alone, so that their memory stays shared.
    gc.freeze()
    sys.stdout.flush()
    sys.stderr.flush()
    with connection:
        connection.sendall(f"{READY}\n".encode())
        spec = Server(program, imported, sources, connection).serve()
    if spec is not None:
        become(program, imported, spec)


if __name__ == "__main__":
    main(sys.argv[1])
