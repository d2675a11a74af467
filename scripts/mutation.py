"""Mutation testing: change modules one line at a time, and run the tests of each module.

    python -m scripts.mutation                        all suites of scripts/mutation.toml
    python -m scripts.mutation losses --sample 40     one suite, at most 40 mutants of each module
    python -m scripts.mutation planner --only starts  only modules whose path holds this text
    python -m scripts.mutation batching --match work  only mutants of lines that hold this text

Every suite names modules and the tests that should fail. They run on a copy of the working tree, which is removed
afterwards. One process imports the heavy modules and forks for each mutant, so that a mutant costs only its tests. The
exit code is 1 if fewer than `minimum` percent of a suite's mutants are killed; equivalent mutants do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.mutants import Mutant, mutants_of, replaced

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "scripts" / "mutation.toml"
LINKED = (".venv", ".bin")
"""Ignored by git, used by some tests."""
TESTS_FAILED = 1


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Modules, and the tests that should notice when one is broken."""

    name: str
    modules: Sequence[str]
    tests: Sequence[str]
    preload: Sequence[str] = ()
    """Packages outside this repository that are imported once."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """What `mutation.toml` says."""

    minimum: float
    suites: Sequence[Suite]
    by_hand: Sequence[Mapping[str, str]]
    """Mutants that no rule makes: `module`, `was` and `now`."""
    equivalent: Sequence[Mapping[str, str]]
    """Mutants that compute the same: `module`, `was`, `why`, and `now` unless all mutants of the line are meant."""

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Table:
        """Return the table of a parsed `mutation.toml`; KeyError or TypeError for keys that are absent or unknown."""
        return cls(
            minimum=content["minimum"],
            suites=[Suite(**suite) for suite in content["suite"]],
            by_hand=content.get("by_hand", []),
            equivalent=content.get("equivalent", []),
        )

    def mutants(self, module: str, source: str) -> list[Mutant]:
        """Return the module's mutants without those that are equivalent; ValueError for entries that match nothing."""
        by_hand = [entry for entry in self.by_hand if entry["module"] == module]
        made = mutants_of(source) + [replaced(source, entry["was"], entry["now"]) for entry in by_hand]
        for entry in self.equivalent:
            if entry["module"] != module:
                continue
            left = [mutant for mutant in made if not _is_meant(mutant, entry)]
            if len(left) == len(made):
                raise ValueError(f"{TABLE.name}: no mutant of {module} is this equivalent one: {entry['was']}")
            made = left
        return made


def _is_meant(mutant: Mutant, entry: Mapping[str, str]) -> bool:
    return mutant.was == entry["was"] and entry.get("now", mutant.now) == mutant.now


class Copy:
    """A copy of the working tree in which modules are broken."""

    def __init__(self, root: Path) -> None:
        self.root = root
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        for name in LINKED:
            if (ROOT / name).exists():
                (root / name).symlink_to(ROOT / name)

    @contextlib.contextmanager
    def broken(self, module: str, mutant: Mutant) -> Iterator[None]:
        """Apply a mutant to a module of the copy within the context, and restore the module afterwards."""
        path = self.root / module
        before = path.read_text()
        path.write_text(mutant.of(before))
        try:
            yield
        finally:
            path.write_text(before)

    def forget_compiled(self, module: str) -> None:
        """Remove the module's bytecode: it is found by size and second, which a mutant may share."""
        path = self.root / module
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()

    def run(self, tests: Sequence[str], limit_s: float, *, writes_bytecode: bool = False) -> int:
        """Return pytest's exit code, or that of failed tests if they take too long."""
        process = os.fork()
        if process == 0:
            self._run_and_exit(tests, writes_bytecode=writes_bytecode)
        try:
            return _waited(process, limit_s)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process, signal.SIGKILL)

    def _run_and_exit(self, tests: Sequence[str], *, writes_bytecode: bool) -> None:
        code = 3
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            os.chdir(self.root)
            with (self.root / ".mutation.log").open("w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            here = [str(self.root), str(self.root / "operator")]
            sys.path[:] = here + [place for place in sys.path if Path(place or ".").resolve() != ROOT]
            sys.dont_write_bytecode = not writes_bytecode
            os.environ |= {"PYTHONPATH": os.pathsep.join(here)}
            if not writes_bytecode:
                os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            import pytest

            code = int(pytest.main(["-x", "-q", "--ff", "--no-header", "--tb=line", *tests]))
            sys.stdout.flush()
        finally:
            os._exit(code)


def _waited(process: int, limit_s: float) -> int:
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return TESTS_FAILED


def run_suite(table: Table, suite: Suite, arguments: argparse.Namespace) -> float:
    """Print the survivors and what share was killed; return the share in percent."""
    for package in suite.preload:
        importlib.import_module(package)
    with tempfile.TemporaryDirectory(prefix="wrpo-mutation-") as directory:
        copy = Copy(Path(directory))
        started_s = time.monotonic()
        if code := copy.run(suite.tests, 1200.0, writes_bytecode=True):
            print((copy.root / ".mutation.log").read_text()[-3000:])
            raise SystemExit(f"{suite.name}: the tests fail on unbroken modules (pytest's exit code {code})")
        whole_s = time.monotonic() - started_s
        print(f"{suite.name}: unbroken, {whole_s:.0f} s", flush=True)
        killed = survived = 0
        for module in _wanted_modules(suite, arguments):
            copy.forget_compiled(module)
            for mutant in _chosen(table.mutants(module, (copy.root / module).read_text()), arguments):
                with copy.broken(module, mutant):
                    is_killed = copy.run(suite.tests, 20.0 + 3 * whole_s) != 0
                killed, survived = killed + is_killed, survived + (not is_killed)
                if not is_killed:
                    print(
                        f"survived {module}:{mutant.line}\n  was = {mutant.was!r}\n  now = {mutant.now!r}", flush=True
                    )
                elif arguments.verbose:
                    print(f"killed {module}:{mutant.line}  {mutant.now}", flush=True)
            print(f"{suite.name}: {module}, so far {killed} killed, {survived} survived", flush=True)
    share = 100.0 * killed / max(1, killed + survived)
    print(f"{suite.name}: {killed} of {killed + survived} mutants killed, {share:.1f} %", flush=True)
    return share


def _wanted_modules(suite: Suite, arguments: argparse.Namespace) -> Sequence[str]:
    return [module for module in suite.modules if arguments.only in module]


def _chosen(mutants: Sequence[Mutant], arguments: argparse.Namespace) -> Sequence[Mutant]:
    matching = [mutant for mutant in mutants if arguments.match in mutant.was]
    if arguments.sample is None or len(matching) <= arguments.sample:
        return matching
    drawn = random.Random(arguments.seed).sample(matching, arguments.sample)  # noqa: S311 (a choice, no secret)
    return sorted(drawn, key=lambda mutant: mutant.start)


def main() -> int:
    """Run the suites that are named."""
    table = Table.read(tomllib.loads(TABLE.read_text()))
    names = [suite.name for suite in table.suites]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"{', '.join(names)}; all if none is named")
    parser.add_argument("--sample", type=int, help="at most so many mutants of each module")
    parser.add_argument("--seed", type=int, default=0, help="another sample")
    parser.add_argument("--only", default="", help="only modules whose path holds this text")
    parser.add_argument("--match", default="", help="only mutants of lines that hold this text")
    parser.add_argument("--verbose", action="store_true", help="print killed mutants, too")
    arguments = parser.parse_args()
    # A run that is terminated removes its copies, too.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    if unknown := set(arguments.suites) - set(names):
        parser.error(f"no suite {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    named = [suite for suite in table.suites if not arguments.suites or suite.name in arguments.suites]
    wanted = [suite for suite in named if _wanted_modules(suite, arguments)]
    if not wanted:
        parser.error(f"--only {arguments.only}: no module of {', '.join(suite.name for suite in named)} has this path")
    shares = {suite.name: run_suite(table, suite, arguments) for suite in wanted}
    return int(any(share < table.minimum for share in shares.values()))


if __name__ == "__main__":
    sys.exit(main())
