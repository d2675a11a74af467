"""What the tests of a volume write."""

from __future__ import annotations

from pathlib import Path

from wrpo_engine.config import ArtifactRef

REF = ArtifactRef(stage="score/a", hash="00000000000000aa")


def fill(path: Path) -> None:
    path.write_text("hello")
