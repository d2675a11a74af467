"""One file of a hub, byte by byte: continued where a connection broke or a pod was killed, and verified."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from wrpo_engine.errors import DataError
from wrpo_engine.fetching.plan import FetchPlan, HubFile
from wrpo_engine.hub import HubPatience

log = logging.getLogger("wrpo_engine")

_ATTEMPTS = 2
"""A file whose checksum is wrong is fetched once more from its beginning."""
_TIMEOUT_S = 60.0


def download_file(
    plan: FetchPlan, file: HubFile, target: Path, patience: HubPatience, on_bytes: Callable[[int], None]
) -> None:
    """Fill `target`; what it holds already is kept. DataError if the hub gives another content than it says."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(_ATTEMPTS):
        _fill(plan, file, target, patience, on_bytes)
        if file.is_content_of(target):
            return
        target.unlink()
        log.warning("%s of %s is not what the hub says it is (attempt %d)", file.name, plan.name, attempt + 1)
    raise DataError(
        f"{file.name} of {plan.name} at {plan.revision} is not what the hub says it is: its checksum differs, twice",
        code="DownloadDamaged",
        field="model",
        hint="A proxy or mirror on the way may alter it; try without, or put the model on the storage.",
    )


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
        with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S) as answer:
            if answer.status_code == 416:
                # There is nothing behind what we have; the checksum tells whether that is all.
                return
            answer.raise_for_status()
            goes_on = answer.status_code == 206
            with target.open("ab" if goes_on else "wb") as out:
                # As they come: what is collected into larger pieces is lost when the connection breaks.
                for chunk in answer.iter_raw():
                    patience.poll()
                    out.write(chunk)
                    out.flush()
                    on_bytes(len(chunk))
                os.fsync(out.fileno())
        if file.size is not None and have() < file.size:
            raise ConnectionError(f"{file.name} ended at byte {have()} of {file.size}")

    patience.call(f"downloading {file.name} of {plan.name}", request, progress=have)
