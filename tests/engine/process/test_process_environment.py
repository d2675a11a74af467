"""What a stage finds set in its environment, and what of it is left to the user."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wrpo_engine.process.environment import prepare_cubins, prepare_environment

ALLOCATOR = "PYTORCH_ALLOC_CONF"


@pytest.fixture
def without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)


def prepared(tmp_path: Path, *, is_training: bool = False, **given: Any) -> dict[str, str]:
    environ = {"HOME": str(tmp_path), **given}
    prepare_environment(environ, is_training=is_training)
    return environ


@pytest.mark.usefixtures("without_a_name")
def test_a_user_id_without_a_name_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import getpass

    environ = prepared(tmp_path)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("USER", environ["USER"])
    assert getpass.getuser() == environ["LOGNAME"] == "wrpo"


@pytest.mark.usefixtures("without_a_name")
@pytest.mark.parametrize("name", ["LOGNAME", "USER", "LNAME", "USERNAME"])
def test_a_users_name_that_is_set_stays_the_only_one(tmp_path: Path, name: str) -> None:
    given: dict[str, Any] = {name: "ada"}
    environ = prepared(tmp_path, **given)
    assert {key: value for key, value in environ.items() if key in {"LOGNAME", "USER"}} == (
        {name: "ada"} if name in {"LOGNAME", "USER"} else {}
    )


def test_a_user_that_the_system_knows_needs_no_name(tmp_path: Path) -> None:
    assert "USER" not in prepared(tmp_path)


def test_only_training_gets_memory_in_segments_that_grow(tmp_path: Path) -> None:
    assert prepared(tmp_path, is_training=True)[ALLOCATOR] == "expandable_segments:True"
    assert ALLOCATOR not in prepared(tmp_path)


@pytest.mark.parametrize("name", [ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"])
def test_the_users_settings_of_the_allocator_count_under_each_of_its_names(tmp_path: Path, name: str) -> None:
    environ = prepared(tmp_path, is_training=True, **{name: "max_split_size_mb:64"})
    assert {key: value for key, value in environ.items() if "ALLOC_CONF" in key} == {name: "max_split_size_mb:64"}


def test_nccl_says_what_it_cannot_use_unless_the_user_asks_for_more(tmp_path: Path) -> None:
    assert prepared(tmp_path)["NCCL_DEBUG"] == "WARN"
    assert prepared(tmp_path, NCCL_DEBUG="INFO")["NCCL_DEBUG"] == "INFO"


@pytest.fixture
def cubins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two kernels in a package that the process must not write to, even if root runs the test."""
    package = tmp_path / "package"
    (package / "abc" / "fmha").mkdir(parents=True)
    (package / "abc" / "fmha" / "one.cubin").write_bytes(b"1")
    (package / "checksums.txt").write_bytes(b"2")
    allowed: Callable[[Path, int], bool] = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != package and allowed(path, mode))
    return package


def test_flashinfer_may_write_beside_kernels_that_stay_in_a_read_only_package(tmp_path: Path, cubins: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    for _ in range(2):
        # Also where another process of the pod was first.
        environ.pop("FLASHINFER_CUBIN_DIR", None)
        prepare_cubins(environ, cubins)
    place = Path(environ["FLASHINFER_CUBIN_DIR"])
    assert place == tmp_path / ".cache" / "flashinfer-cubins"
    kernel = place / "abc" / "fmha" / "one.cubin"
    assert kernel.readlink() == cubins / "abc" / "fmha" / "one.cubin"
    assert (place / "checksums.txt").read_bytes() == b"2"
    (place / "abc" / "fmha" / "link").symlink_to(kernel)
    (place / "new").mkdir()
    assert sorted(path.name for path in cubins.iterdir()) == ["abc", "checksums.txt"]


def test_kernels_that_need_no_copy_get_none(tmp_path: Path, cubins: Path) -> None:
    named = {"HOME": str(tmp_path), "FLASHINFER_CUBIN_DIR": "/mine"}
    prepare_cubins(named, cubins)
    assert named["FLASHINFER_CUBIN_DIR"] == "/mine"
    for package in (tmp_path / "absent", cubins / "abc", None):
        environ = {"HOME": str(tmp_path)}
        prepare_cubins(environ, package)
        assert environ == {"HOME": str(tmp_path)}
    assert not (tmp_path / ".cache").exists()
