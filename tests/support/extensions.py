"""Distributions that add stages by entry points, made on the spot."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from wrpo_engine.contract.stages import GROUP

SHOUT = Path(__file__).with_name("shout_stage.py")


def install(directory: Path, module: Path = SHOUT, *, entry: str = "shout_stage:SHOUT") -> Path:
    """Make a distribution of a module in a directory, which does what a wheel does once it is on PYTHONPATH."""
    directory.mkdir(exist_ok=True)
    shutil.copy(module, directory)
    metadata = directory / "shout-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shout\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\nshout = {entry}\n", encoding="utf-8")
    return directory


def python_path(*directories: Path) -> str:
    """Return PYTHONPATH with directories in front."""
    return os.pathsep.join([*map(str, directories), *filter(None, [os.environ.get("PYTHONPATH")])])
