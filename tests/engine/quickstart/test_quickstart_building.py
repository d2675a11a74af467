"""Assets are built side by side, in processes of their own, after those that they are made from."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from wrpo_engine.errors import ConfigError, TemporaryError, WrpoError
from wrpo_engine.process.progress import Progress
from wrpo_engine.quickstart.building import Asset, Making, usable_cores
from wrpo_engine.quickstart.models import OnStep
from wrpo_engine.quickstart.store import AssetStore

RECIPE = {"version": 1}


def meet(root: Path, own: str, other: str, out: Path, on_step: OnStep) -> str:
    """End only while the other build runs, too."""
    (out / "threads").write_text(str(torch.get_num_threads()))
    (root / own).touch()
    while not (root / other).exists():
        time.sleep(0.01)
    on_step(1, 2, 0.5)
    return "met"


def outlast(root: Path, own: str, other: str, out: Path, on_step: OnStep) -> None:
    """End only when the other build has left its threads to this one."""
    own_threads = torch.get_num_threads()
    meet(root, own, other, out, on_step)
    while torch.get_num_threads() != 2 * own_threads:
        time.sleep(0.01)
        on_step(1, 2, 0.5)


def follow(parents: list[Path], out: Path, _on_step: OnStep) -> None:
    (out / "read").write_text(" ".join(path.read_text() for path in parents))


def refuse(out: Path, _on_step: OnStep) -> None:
    raise ConfigError("field", out.name, "it is wrong", "Correct it.")


def die(_out: Path, _on_step: OnStep) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_ever(_out: Path, _on_step: OnStep) -> None:
    while True:
        time.sleep(1)


Make = Callable[..., tuple[list[str], list[tuple[float, str]]]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make assets on that many cores; return what was said, and (done, message) of all progress."""

    def run(*assets: Asset, cores: int) -> tuple[list[str], list[tuple[float, str]]]:
        said: list[str] = []
        seen: list[tuple[float, str]] = []

        class Seen(Progress):
            def update(self, done: float, _total: float, *, message: str = "", **_: object) -> None:  # type: ignore[override]
                seen.append((done, message))

        Making(AssetStore(tmp_path), assets, Seen(), lambda: 0.0, said.append, cores).run()
        return said, seen

    return run


def test_independent_assets_are_built_at_a_time_and_share_the_cores(make: Make, tmp_path: Path) -> None:
    said, seen = make(
        Asset(name="a", recipe=RECIPE, build=partial(meet, tmp_path, "left", "right")),
        Asset(name="b", recipe=RECIPE, build=partial(outlast, tmp_path, "right", "left")),
        Asset(
            name="c",
            recipe=RECIPE,
            build=partial(follow, [tmp_path / "a/threads", tmp_path / "b/threads"]),
            made_from=("a", "b"),
        ),
        cores=6,
    )
    assert (tmp_path / "c/read").read_text() == "3 3"
    assert sorted(said[:2]) == ["[1/3] a: making it", "[2/3] b: making it"]
    assert said[-2:] == ["[3/3] c: making it", "[3/3] c: made in 0 s"]
    assert "a: met" in said
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (3.0, "")
    assert any("a step 1/2 (loss 0.500)" in message for _, message in seen)
    again, none = make(Asset(name="a", recipe=RECIPE, build=refuse), cores=1)
    assert (again, none) == (["[1/1] a: exists already"], [])


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (refuse, ConfigError, "field is '.making-bad': it is wrong"),
        (die, TemporaryError, r"the process that built \.making-bad ended with exit code -9"),
    ],
)
def test_a_build_that_fails_ends_the_others_and_says_why(
    build: Callable[[Path, OnStep], None], error: type[WrpoError], message: str, make: Make, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        make(
            Asset(name="endless", recipe=RECIPE, build=wait_for_ever),
            Asset(name="bad", recipe=RECIPE, build=build),
            cores=2,
        )
    assert not (tmp_path / "endless").exists()


@pytest.mark.parametrize(("given", "cores"), [("3", 3), ("0", None), ("", None), ("4,2", None)])
def test_threads_that_the_environment_allows_are_the_cores(given: str, cores: int | None) -> None:
    assert usable_cores({"OMP_NUM_THREADS": given}) == (cores or len(os.sched_getaffinity(0)))
