"""Download of one file of a hub, resumed after a broken connection or a killed pod, and verified."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from wrpo_engine.errors import DataError
from wrpo_engine.fetching.plan import FetchPlan
from wrpo_engine.hub.client import HubPatience, raise_for_status
from wrpo_engine.hub.remote import TIMEOUT_S, HubFile

log = logging.getLogger("wrpo_engine")

_ATTEMPTS = 2
"""A file whose checksum is wrong is fetched once more from its beginning."""
_LEFTOVER_AGE_S = 3600.0
PART_SUFFIX = ".part"


def download_file(
    plan: FetchPlan, file: HubFile, target: Path, patience: HubPatience, on_bytes: Callable[[int], None]
) -> None:
    """Complete `target`; its content so far is kept. DataError if the content does not match the hub's checksum."""
    for attempt in range(_ATTEMPTS):
        _fill(plan, file, target, patience, on_bytes)
        if file.is_content_of(target):
            return
        target.unlink(missing_ok=True)
        log.warning("%s of %s does not match the hub's checksum (attempt %d)", file.name, plan.name, attempt + 1)
    raise DataError(
        f"{file.name} of {plan.name} at {plan.revision} does not match the hub's checksum, in two attempts",
        code="DownloadDamaged",
        field="model",
        hint="A proxy or mirror on the way may alter it; try without, or put the model on the storage.",
    )


def adopt_leftover(target: Path, now: float) -> None:
    """Start `target` with the largest leftover of another download of the same file, killed or still running.

    The leftover is copied, because the other process may still be alive and write to its file. `now` is in
    seconds since the epoch; leftovers without a recent write are removed.
    """
    sizes: dict[Path, int] = {}
    for path in target.parent.glob(f"*{PART_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            sizes[path] = path.stat().st_size
    if target in sizes or not sizes:
        return
    # Another process may have removed the file in the meantime.
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(max(sizes, key=lambda path: sizes[path]), target)
    for path in sizes:
        with contextlib.suppress(FileNotFoundError):
            if now - path.stat().st_mtime > _LEFTOVER_AGE_S:
                path.unlink()


def _fill(plan: FetchPlan, file: HubFile, target: Path, patience: HubPatience, on_bytes: Callable[[int], None]) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    url = hf_hub_url(plan.name, file.name, revision=plan.revision)

    def have() -> int:
        return target.stat().st_size if target.exists() else 0

    def request() -> None:
        position = have()
        if file.size is not None and position >= file.size and position > 0:
            return
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if position:
            headers["Range"] = f"bytes={position}-"
        with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT_S) as answer:
            if answer.status_code == 416:
                # The server has no further bytes; the checksum shows whether the file is complete.
                return
            raise_for_status(answer)
            goes_on = answer.status_code == 206
            # Another process that has committed the model removes all downloads.
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab" if goes_on else "wb") as out:
                # Written as received: a larger buffer would be lost when the connection breaks.
                for chunk in answer.iter_raw():
                    patience.poll()
                    out.write(chunk)
                    out.flush()
                    on_bytes(len(chunk))
                os.fsync(out.fileno())
        if file.size is not None and have() < file.size:
            raise ConnectionError(f"{file.name} ended at byte {have()} of {file.size}")

    patience.call(f"downloading {file.name} of {plan.name}", request, progress=have)
