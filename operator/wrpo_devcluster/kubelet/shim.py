"""Supervisor of one container's process that outlives the control plane: records its pid, log and exit.

Usage: python -I -S shim.py SPEC.json. Standard library only, and few imports: it starts with every container.
The container's process leads a separate process group. Processes that it leaves behind are killed, as in a pid
namespace.
"""

# pathlib would double the start-up time, and exec is the purpose.
# ruff: noqa: PTH105, PTH123, PTH208, S606

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Milliseconds of every container's start, for names of types only.
    from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CHUNK = 65536


def start_ticks(pid: int) -> int:
    """Return when the process started, in clock ticks since boot. Together with the pid it identifies a process."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def write_record(path: str, record: dict[str, object]) -> None:
    """Write a record so that it is on the disk as a whole or not at all."""
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _stamp() -> str:
    now = time.time_ns()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now % 10**9:09d}Z"


def _copy_log(source: int, path: str) -> None:
    """Write each line with its time. `P` marks a part of a line that continues in the next entry."""
    with open(path, "ab", buffering=0) as log:
        while True:
            try:
                chunk = os.read(source, _CHUNK)
            except OSError:
                return
            if not chunk:
                return
            prefix = f"{_stamp()} stdout ".encode()
            lines = chunk.split(b"\n")
            out = [prefix + b"F " + line + b"\n" for line in lines[:-1]]
            if lines[-1]:
                out.append(prefix + b"P " + lines[-1] + b"\n")
            log.write(b"".join(out))


def read_spec(path: str) -> dict[str, Any]:
    """Return what the kubelet has written: argv, env, cwd, and the files of log and records."""
    with open(path, encoding="utf-8") as file:
        spec: dict[str, Any] = json.load(file)
    return spec


def fork_container(spec: dict[str, Any]) -> tuple[int, int, int]:
    """Fork the container's process; return its pid and the ends of the pipes for its output and for a failed start.

    In the container's process the pid is 0. There the process group, stdin, stdout, stderr and the directory are those
    of the container; an error is written to the second pipe, which the process closes when it has started.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A handler, not SIG_IGN: the child's exec resets it.
        signal.signal(number, lambda *_: None)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    output_read, output_write = os.pipe()
    trouble_read, trouble_write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(output_write)
        os.close(trouble_write)
        return pid, output_read, trouble_read
    try:
        os.setpgid(0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output_write, 1)
        os.dup2(output_write, 2)
        for descriptor in (output_read, output_write, trouble_read):
            os.close(descriptor)
        os.chdir(spec["cwd"])
    except OSError as error:
        fail_start(spec, trouble_write, error)
    return 0, -1, trouble_write


def fail_start(spec: dict[str, Any], trouble: int, error: OSError) -> NoReturn:
    """End the container's process because it cannot start, with the reason for the supervisor."""
    name = spec["argv"][0]
    if isinstance(error, FileNotFoundError):
        text = f'exec: "{name}": executable file not found in $PATH (PATH is that of this machine, not an image)'
    else:
        text = f'exec: "{name}": {error.strerror}'
    os.write(trouble, text.encode()[:4000])
    os._exit(128)


def _descendants() -> list[int]:
    me = str(os.getpid())
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as file:
                    parent = file.read().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if parent == me:
                found.append(int(entry))
    return found


def _reap(pid: int) -> int:
    """Wait for the container's process, then kill the processes that it left behind; return its wait status."""
    status = 0
    while True:
        done, raw = os.waitpid(-1, 0)
        if done == pid:
            status = raw
            break
    while True:
        for orphan in _descendants():
            try:
                os.kill(orphan, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return status


def supervise(spec: dict[str, Any], pid: int, output: int, trouble: int) -> None:
    """Record the container's process, copy its output to the log, wait for its end and record that."""
    started_at = _stamp()
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot_id = file.read().strip()
    record = {
        "shim_pid": os.getpid(),
        "shim_start": start_ticks(os.getpid()),
        "pid": pid,
        "start": start_ticks(pid),
        "boot_id": boot_id,
        "started_at": started_at,
    }
    write_record(spec["pid_file"], record)
    copier = threading.Thread(target=_copy_log, args=(output, spec["log_file"]))
    copier.start()
    with os.fdopen(trouble, "rb") as reader:
        error = reader.read().decode(errors="replace")
    status = _reap(pid)
    copier.join()
    code = os.waitstatus_to_exitcode(status)
    write_record(
        spec["exit_file"],
        {
            "exit_code": 128 - code if code < 0 else code,
            "signal": -code if code < 0 else 0,
            "error": error,
            "started_at": started_at,
            "finished_at": _stamp(),
        },
    )


def main(spec_path: str) -> None:
    """Run the process that a spec describes, and record its end."""
    spec = read_spec(spec_path)
    pid, output, trouble = fork_container(spec)
    if pid:
        supervise(spec, pid, output, trouble)
        return
    try:
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
    except OSError as error:
        fail_start(spec, trouble, error)


if __name__ == "__main__":
    main(sys.argv[1])
