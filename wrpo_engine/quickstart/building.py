"""Building of assets side by side, in separate processes, because the steps of small models gain little by threads.

The processes are forks of one that has imported what builds need, because the imports take longer than a small build.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from wrpo_engine.errors import TemporaryError, WrpoError
from wrpo_engine.process.progress import Progress
from wrpo_engine.quickstart.models import OnStep
from wrpo_engine.quickstart.store import Assets, Recipe

AT_ONCE = 2
"""Each build holds up to 2 GiB."""
_POLL_S = 1.0
_END_S = 30.0
"""Limit in seconds for the end of a process that has built its model."""
_CONTEXT = multiprocessing.get_context("forkserver")

Build = Callable[[Path, OnStep], str | None]
"""Fills a directory, reports steps, and returns a line for the log. It can be pickled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One directory to build."""

    name: str
    recipe: Recipe
    build: Build
    made_from: tuple[str, ...] = ()
    """Assets that `build` reads."""


def usable_cores(environ: Mapping[str, str]) -> int:
    """Return the cores that builds may use: OMP_NUM_THREADS, or those of this process."""
    given = environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else len(os.sched_getaffinity(0))


@dataclass
class Making:
    """The assets of one command. A missing one is built as soon as those that it is made from exist."""

    store: Assets
    assets: Sequence[Asset]
    progress: Progress
    monotonic: Callable[[], float]
    say: Callable[[str], None]
    cores: int
    imports: Sequence[str] = ("torch",)
    """Modules that builds need: imported once for all of them."""
    _threads: ctypes.c_int = field(init=False)
    """Of each running build: they share the cores, and the last one has all of them. The builds read it, too."""
    _made: set[str] = field(default_factory=set, init=False)
    _steps: dict[str, tuple[float, str]] = field(default_factory=dict, init=False)
    """Name of a running build -> its done share, and where it is in words."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)

    def run(self) -> None:
        """Build what is missing. An error of one build stops the others and is raised."""
        _CONTEXT.set_forkserver_preload(list(self.imports))
        self._threads = _CONTEXT.RawValue(ctypes.c_int, 1)
        waiting = [asset for asset in self.assets if not self._exists(asset)]
        running: dict[Future[None], Asset] = {}
        at_once = min(AT_ONCE, self.cores)
        with ThreadPoolExecutor(at_once, thread_name_prefix="build") as pool:
            try:
                while waiting or running:
                    started = self._ready(waiting)[: at_once - len(running)]
                    self._threads.value = max(1, self.cores // (len(running) + len(started)))
                    for asset in started:
                        waiting.remove(asset)
                        running[pool.submit(self._make, asset)] = asset
                    for ended in wait(running, return_when=FIRST_COMPLETED).done:
                        ended.result()
                        self._made.add(running.pop(ended).name)
            except BaseException:
                self._stop.set()
                raise

    def _exists(self, asset: Asset) -> bool:
        if not self.store.is_current(asset.name, asset.recipe):
            return False
        self.say(f"{self._place(asset)}: exists already")
        self._made.add(asset.name)
        return True

    def _ready(self, waiting: Sequence[Asset]) -> list[Asset]:
        return [asset for asset in waiting if self._made.issuperset(asset.made_from)]

    def _place(self, asset: Asset) -> str:
        return f"[{self.assets.index(asset) + 1}/{len(self.assets)}] {asset.name}"

    def _make(self, asset: Asset) -> None:
        self.say(f"{self._place(asset)}: making it")
        started = self.monotonic()
        for name in asset.made_from:
            self.store.provide(name)

        def on_step(step: int, steps: int, loss: float) -> None:
            self._show(asset.name, (step / steps, f"{asset.name} step {step}/{steps} (loss {loss:.3f})"))

        def build(out: Path) -> None:
            said = run_apart(asset.build, out, on_step, threads=self._threads, stop=self._stop)
            if said is not None:
                self.say(f"{asset.name}: {said}")

        self.store.make(asset.name, asset.recipe, build)
        self._show(asset.name, (1.0, ""))
        self.say(f"{self._place(asset)}: made in {self.monotonic() - started:.0f} s")

    def _show(self, name: str, state: tuple[float, str]) -> None:
        with self._lock:
            self._steps[name] = state
            existed = len(self._made - self._steps.keys())
            done = existed + sum(share for share, _ in self._steps.values())
            message = "; ".join(text for _, text in self._steps.values() if text)
            self.progress.update(done, len(self.assets), message=message)


def run_apart(build: Build, out: Path, on_step: OnStep, *, threads: ctypes.c_int, stop: threading.Event) -> str | None:
    """Run a build in a process of `threads` threads, which may change, and return its line.

    Raises the build's WrpoError or OSError. TemporaryError means that the process ended without an outcome, or that
    `stop` was set.
    """
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_build, args=(build, out, sender, threads), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            while not receiver.poll(_POLL_S):
                if stop.is_set():
                    raise TemporaryError("stopped, because another build failed", hint="Run the command again.")
            match receiver.recv():
                case (int(step), int(steps), float(loss)):
                    on_step(step, steps, loss)
                case Exception() as error:
                    raise error
                case said:
                    # Ended by a signal, it leaves semaphores, of which Python warns on the terminal.
                    process.join(_END_S)
                    return None if said is None else str(said)
    except EOFError:
        process.join()
        raise TemporaryError(
            f"the process that built {out.name} ended with exit code {process.exitcode}",
            hint="If it is negative, it was killed, usually because memory ran out: free some, then run it again.",
        ) from None
    finally:
        receiver.close()
        process.terminate()
        process.join()


def _build(build: Build, out: Path, outcome: Connection, threads: ctypes.c_int) -> None:
    # Ctrl-C reaches every process of the terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    def on_step(step: int, steps: int, loss: float) -> None:
        outcome.send((step, steps, float(loss)))
        torch.set_num_threads(threads.value)

    torch.set_num_threads(threads.value)
    try:
        said = build(out, on_step)
    except (WrpoError, OSError) as error:
        outcome.send(error)
    else:
        outcome.send(said)
