"""What `datasets` raises about a hub's data set ends as an error that says whose fault it is, and never as a crash."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from wrpo_engine.errors import WrpoError
from wrpo_engine.hub.data import HubData, load_from_hub


def generation_error() -> Exception:
    from datasets.exceptions import DatasetGenerationError

    error = DatasetGenerationError("An error occurred while generating the dataset")
    error.__cause__ = ValueError("Parquet magic bytes not found in footer")
    return error


def full_disk() -> Exception:
    error = generation_error()
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


FAULTS: dict[str, tuple[Callable[[], Exception], int, str]] = {
    "damaged files": (
        generation_error,
        65,
        "IN is 'org/set': its files cannot be read (Parquet magic bytes not found in footer)",
    ),
    "a full disk": (full_disk, 73, "the storage is full (No space left on device)"),
    "code": (
        lambda: RuntimeError("Dataset scripts are no longer supported, but found set.py"),
        78,
        "IN is 'org/set': `datasets` does not read it (Dataset scripts are no longer supported, but found set.py)",
    ),
    "a card that it cannot follow": (
        lambda: TypeError("'str' object is not callable"),
        78,
        "IN is 'org/set': `datasets`",
    ),
    "an unknown split": (lambda: ValueError('Unknown split "dev"'), 78, "--split is 'dev': Unknown split \"dev\""),
    "a broken connection": (lambda: ConnectionResetError("reset"), 75, "IN is 'org/set': it cannot be downloaded now"),
}


@pytest.mark.parametrize(("make", "code", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_of_a_hub_data_set_is_named(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Exception], code: int, said: str
) -> None:
    import datasets

    def load_dataset(*_arguments: Any, **_options: Any) -> Any:
        raise make()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(WrpoError) as error:
        load_from_hub(HubData("org/set"), split="dev", field="IN", split_field="--split")
    assert (error.value.exit_code, error.value.message.startswith(said)) == (code, True), error.value.message
    assert error.value.hint
