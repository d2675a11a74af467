"""Journals of a run, metrics.jsonl and eval.jsonl: published before each checkpoint, fetched by the next attempt.

They grow in the artifact's directory. On a volume that is their final place. Where the directory is only a cache, they
are published before each checkpoint and fetched when a run resumes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from typing_extensions import override

from wrpo_engine.artifacts import ArtifactWriter
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.monitoring.callbacks import Observer


def fetch_journals(output: ArtifactWriter, group: Group, names: Sequence[str]) -> None:
    """Copy the journals that earlier attempts published into the artifact's directory; on rank 0, the only writer.

    A local file is kept: it is at least as new as the published one.
    """

    def fetch() -> None:
        for name in names:
            local = output.directory / name
            if not local.exists() and name in output.published(name):
                fetched = output.fetch(name)
                if fetched != local:
                    shutil.copyfile(fetched, local)

    group.on_main(fetch)


class JournalPublisher(Observer):
    """Publishes the journals before each checkpoint."""

    def __init__(self, output: ArtifactWriter, group: Group, names: Sequence[str]) -> None:
        self._output = output
        self._group = group
        self._names = names

    @override
    def before_checkpoint(self, step: int) -> None:
        self._group.on_main(self._publish)

    def _publish(self) -> None:
        for name in self._names:
            local = self._output.directory / name
            if local.exists():
                self._output.publish(name, partial(_copy, local), replace=True)


def _copy(source: Path, path: Path) -> None:
    shutil.copyfile(source, path)
