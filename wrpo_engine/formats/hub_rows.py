"""Data sets of a hub, and what to do when one cannot be had; each reader names its own fields."""

from __future__ import annotations

from typing import Any

from wrpo_engine.errors import ConfigError, TemporaryError


def load_from_hub(name: str, *, config: str | None = None, split: str, field: str, split_field: str) -> Any:
    """Return the `datasets.Dataset`. `field` is where the user wrote the name, `split_field` where the split."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return load_dataset(name, config, split=split)
    except DatasetNotFoundError as error:
        raise ConfigError(
            field,
            name,
            "there is no such data set on the hub, or it is private",
            "Check the spelling; of a file or directory write the path, or storage://PATH.",
            code="DatasetNotFound",
        ) from error
    except ValueError as error:
        # An unknown split or configuration; the message lists those there are.
        raise ConfigError(split_field, split, str(error).splitlines()[0], "Name one of those there are.") from error
    except (ConnectionError, TimeoutError) as error:
        if "OfflineModeIsEnabled" in str(error):
            raise ConfigError(
                field,
                name,
                "it is not in the local cache, and HF_HUB_OFFLINE forbids downloading",
                "Check the path, put the data on the storage (storage://PATH), or allow downloads.",
                code="DatasetNotFound",
            ) from error
        raise TemporaryError(
            f"{field} is {name!r}: it cannot be downloaded now ({error})",
            code="HubUnreachable",
            field=field,
            hint="Check the network, or put the data on the storage and name it storage://PATH.",
        ) from error
