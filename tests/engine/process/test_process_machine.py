"""Facts of the machine, and what is concluded from them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import pytest

from wrpo_engine.config import ExitCode
from wrpo_engine.errors import ConfigError
from wrpo_engine.process.machine import (
    CudaFacts,
    driver_version,
    fabric,
    fabric_lines,
    require_driver,
    supported_cuda,
    threads_per_rank,
    torch_cuda,
    usable_cores,
)

MIB = 2**20


@pytest.mark.parametrize(
    ("supported", "runtime", "driver", "shown"),
    [
        (
            13000,
            "13.0",
            "580.65.06",
            "CUDA 13.0 (torch) on NVIDIA driver 580.65.06, up to CUDA 13.0",
        ),
        # Within a major version older drivers run newer programs.
        (
            12020,
            "12.9",
            "535.161.08",
            "CUDA 12.9 (torch) on NVIDIA driver 535.161.08, up to CUDA 12.2",
        ),
        (
            13010,
            "12.8",
            None,
            "CUDA 12.8 (torch) on NVIDIA driver of unknown version, up to CUDA 13.1",
        ),
        (None, "13.0", None, None),
        (12020, None, "535.161.08", None),
    ],
)
def test_a_driver_that_is_new_enough_is_logged(
    supported: int | None, runtime: str | None, driver: str | None, shown: str | None
) -> None:
    line = require_driver(CudaFacts(runtime=runtime, supported=supported, driver=driver))
    assert line == (shown and shown.replace(", up", ", which runs programs up"))


def test_a_driver_that_is_too_old_is_refused_for_good() -> None:
    with pytest.raises(ConfigError) as error:
        require_driver(CudaFacts(runtime="13.0", supported=12020, driver="535.161.08"))
    assert (error.value.exit_code, error.value.code) == (ExitCode.CONFIG, "DriverTooOld")
    assert error.value.message == (
        "the node's NVIDIA driver is '535.161.08': it runs programs up to CUDA 12.2, and this image's torch is built "
        "for CUDA 13.0"
    )
    assert error.value.hint == (
        "Install driver 580 or newer on the nodes with GPUs, or set spec.images to images built for CUDA 12."
    )


def test_a_cuda_of_the_future_is_refused_without_a_number_of_a_driver() -> None:
    with pytest.raises(ConfigError) as error:
        require_driver(CudaFacts(runtime="14.2", supported=13000, driver=None))
    assert error.value.hint is not None
    assert error.value.hint.startswith("Install a newer driver on the nodes with GPUs")


class Driver:
    """libcuda.so.1 with a version."""

    def __init__(self, version: int, status: int) -> None:
        self._version, self._status = version, status

    def cuDriverGetVersion(self, place: Any) -> int:  # noqa: N802 (the library's name)
        ctypes.cast(place, ctypes.POINTER(ctypes.c_int))[0] = self._version
        return self._status


def test_the_driver_is_asked_for_the_cuda_that_it_supports() -> None:
    def absent(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    assert supported_cuda(lambda name: Driver(13000, 0) if name == "libcuda.so.1" else None) == 13000
    assert supported_cuda(lambda _: Driver(13000, 34)) is None
    assert supported_cuda(lambda _: Driver(0, 0)) is None
    assert supported_cuda(lambda _: object()) is None
    assert supported_cuda(absent) is None


def test_the_kernels_file_says_the_drivers_version(tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert driver_version(file) is None
    file.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.08  Mon Feb 26 2024\nGCC version: 12.2.0\n"
    )
    assert driver_version(file) == "535.161.08"
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65  Release Build\n")
    assert driver_version(file) == "580.65"
    file.write_text("nothing")
    assert driver_version(file) is None


def test_torchs_version_of_cuda_is_read_without_importing_it() -> None:
    torch = pytest.importorskip("torch")
    assert torch_cuda() == torch.version.cuda


@pytest.mark.parametrize(
    ("locked", "devices", "line", "warned"),
    [
        (8 * MIB, ["uverbs0"], "uverbs0; limit of locked memory: 8 MiB", True),
        (
            -1,
            ["rdma_cm", "uverbs0"],
            "rdma_cm, uverbs0; limit of locked memory: unlimited",
            False,
        ),
        (8 * MIB, [], "none; limit of locked memory: 8 MiB", False),
    ],
)
def test_a_limit_of_locked_memory_matters_where_there_is_infiniband(
    locked: int, devices: list[str], line: str, warned: bool
) -> None:
    shown, warning = fabric_lines(locked, devices)
    assert shown == f"between nodes: /dev/infiniband has {line}"
    assert (warning is not None) is warned
    if warning is not None:
        assert "Set LimitMEMLOCK=infinity for the container runtime of the nodes" in warning


def test_this_machines_fabric_can_be_read() -> None:
    limit, devices = fabric()
    assert limit >= -1
    assert devices == sorted(devices)


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000\n", None), ("100000 100000\n", 1), ("50000 100000\n", 1), ("900000000 100000\n", None), ("", None)],
)
def test_cores_are_those_of_the_containers_limit(tmp_path: Path, text: str, cores: int | None) -> None:
    file = tmp_path / "cpu.max"
    all_cores = len(os.sched_getaffinity(0))
    assert usable_cores(file) == all_cores
    file.write_text(text)
    assert usable_cores(file) == (cores or all_cores)


@pytest.mark.parametrize(
    ("cores", "ranks", "threads"), [(96, "8", 12), (4, "8", 1), (96, "1", None), (96, "auto", None), (96, "", None)]
)
def test_ranks_share_the_cores(cores: int, ranks: str, threads: int | None) -> None:
    assert threads_per_rank(cores, ranks) == threads
