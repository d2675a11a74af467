"""MFU: the peak of the device and the number of devices."""

from __future__ import annotations

import pytest

from wrpo_engine.training.monitoring.mfu import KNOWN_DEVICES, peak_flops, utilisation


@pytest.mark.parametrize(
    ("name", "bf16_tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.4),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA B200", 2250),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_known_devices_have_their_data_sheets_peak(name: str, bf16_tera: float) -> None:
    assert peak_flops(None, name, "bfloat16") == pytest.approx(bf16_tera * 1e12)
    single = peak_flops(None, name, "float32")
    assert single is not None
    assert single < bf16_tera * 1e12


def test_the_configured_peak_wins_and_an_unknown_device_has_none() -> None:
    assert peak_flops(5e12, "NVIDIA H100 80GB HBM3", "bfloat16") == 5e12
    assert peak_flops(None, "Some Accelerator", "bfloat16") is None
    assert peak_flops(None, None, "float32") is None
    assert peak_flops(1e11, None, "float32") == 1e11


def test_no_later_entry_is_hidden_by_an_earlier_one() -> None:
    assert len({device.pattern for device in KNOWN_DEVICES}) == len(KNOWN_DEVICES)


def test_utilisation_is_of_all_devices() -> None:
    assert utilisation(4e12, 2.0, devices=4, peak=1e12) == pytest.approx(0.5)
