"""Readers of a hub's data sets through `datasets`, and the errors when one is not available.

Each reader names its own fields.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, assert_never

from wrpo_engine.errors import ConfigError, DataError, TemporaryError, WrpoError, first_line
from wrpo_engine.hub.client import HubPatience, is_worth_waiting
from wrpo_engine.process.storage_errors import storage_error


class HubDataFault(StrEnum):
    """What a caller can act on."""

    NOT_FOUND = "not-found"
    """No such data set, or it is private or gated."""
    CHOICE = "choice"
    """No such split or configuration, or no data in it."""
    OFFLINE = "offline"
    """Not in the local cache, and downloading is forbidden."""
    UNREACHABLE = "unreachable"
    """The hub is down or busy; a retry may succeed."""
    DAMAGED = "damaged"
    """Its files cannot be read."""
    UNSUPPORTED = "unsupported"
    """`datasets` does not read data sets of this kind, for example those with code."""


@dataclass(frozen=True, slots=True)
class HubData:
    """A data set of a hub."""

    name: str
    revision: str | None = None
    """Commit, tag or branch. None: the default branch."""
    config: str | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A data set and a split of it, and the fields in which the user named them."""

    data: HubData
    split: str
    field: str
    split_field: str


def load_from_hub(data: HubData, *, split: str, field: str, split_field: str) -> Any:
    """Return the `datasets.Dataset` of a hub id. `field` is where the user wrote it, `split_field` where the split."""
    from datasets import load_dataset

    with _named_faults(_Asked(data, split, field, split_field)):
        return load_dataset(data.name, data.config, split=split, revision=data.revision)


def hub_files(name: str, patterns: Sequence[str], *, patience: HubPatience, field: str) -> Path:
    """Return the local directory of a data set's files that match the patterns of `fnmatch`, as they are on the hub."""
    from huggingface_hub import snapshot_download

    def request() -> str:
        return snapshot_download(name, repo_type="dataset", allow_patterns=list(patterns))

    with _named_faults(_Asked(HubData(name), name, field, field)):
        return Path(patience.call(f"downloading the data set {name}", request))


@contextlib.contextmanager
def _named_faults(asked: _Asked) -> Iterator[None]:
    """Translate the errors of reading a data set of the hub into the engine's."""
    try:
        yield
    except (MemoryError, WrpoError):
        raise
    # Data of others, read by others: errors of every kind, of which none is a fault of the engine.
    except Exception as error:
        for cause in _causes(error):
            if isinstance(cause, OSError) and (full := storage_error(cause)) is not None:
                raise full from error
        fault = _fault_of(error)
        if fault is None:
            raise
        last = list(_causes(error))[-1]
        said = first_line(last if fault is HubDataFault.DAMAGED else error)
        raise _refusal(fault, said, asked) from error


def _refusal(fault: HubDataFault, said: str, asked: _Asked) -> WrpoError:
    """Return the error for the user; `said` is the library's own message."""
    name, field = asked.data.name, asked.field
    match fault:
        case HubDataFault.NOT_FOUND:
            return ConfigError(
                field,
                name,
                f"there is no such data set on the hub{_at(asked.data.revision)}, or it is private",
                "Check the spelling; of a file or directory write the path, or storage://PATH. A private or gated one "
                "needs a token (HF_TOKEN).",
                code="DatasetNotFound",
            )
        case HubDataFault.CHOICE:
            # The library's message lists the existing splits and configurations.
            return ConfigError(asked.split_field, asked.split, said, "Name an existing one.")
        case HubDataFault.OFFLINE:
            return ConfigError(
                field,
                name,
                "it is not in the local cache, and HF_HUB_OFFLINE forbids downloading",
                "Check the path, put the data on the storage (storage://PATH), or allow downloads.",
                code="DatasetNotFound",
            )
        case HubDataFault.UNREACHABLE:
            return TemporaryError(
                f"{field} is {name!r}: it cannot be downloaded now ({said})",
                code="HubUnreachable",
                field=field,
                hint="Check the network, or put the data on the storage and name it storage://PATH.",
            )
        case HubDataFault.DAMAGED:
            return DataError(
                f"{field} is {name!r}: its files cannot be read ({said})",
                code="DatasetDamaged",
                field=field,
                hint="Correct the data set, or put corrected files on the storage (storage://PATH).",
            )
        case HubDataFault.UNSUPPORTED:
            rule = f"`datasets` does not read it ({said})"
            return ConfigError(field, name, rule, "Put its rows on the storage as JSON lines or Parquet.")
        case _:
            assert_never(fault)


def _at(revision: str | None) -> str:
    return "" if revision is None else f" at revision {revision!r}"


def _fault_of(error: Exception) -> HubDataFault | None:
    """Return the kind of an error.

    `datasets` reports a busy hub as a missing file; only the chain of causes distinguishes the two.
    """
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    causes = list(_causes(error))
    if any(isinstance(cause, OfflineModeIsEnabled) or "OfflineModeIsEnabled" in str(cause) for cause in causes):
        return HubDataFault.OFFLINE
    if isinstance(error, DatasetNotFoundError | RepositoryNotFoundError):
        return HubDataFault.NOT_FOUND
    if any(is_worth_waiting(cause) for cause in causes):
        return HubDataFault.UNREACHABLE
    if isinstance(error, ValueError | DataFilesNotFoundError):
        return HubDataFault.CHOICE
    if isinstance(error, DatasetGenerationError):
        return HubDataFault.DAMAGED
    return None if isinstance(error, OSError) else HubDataFault.UNSUPPORTED


def _causes(error: BaseException | None) -> Iterator[Exception]:
    while error is not None:
        if isinstance(error, Exception):
            yield error
        error = error.__cause__ or error.__context__
