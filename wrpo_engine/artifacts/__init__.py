"""Artifacts: the output of a stage, with a manifest of its files and their checksums."""

from wrpo_engine.artifacts.manifest import FileEntry, InputEntry, Manifest
from wrpo_engine.artifacts.store import Artifact, ArtifactStore, ArtifactWriter
from wrpo_engine.artifacts.volume import VolumeStore

__all__ = ["Artifact", "ArtifactStore", "ArtifactWriter", "FileEntry", "InputEntry", "Manifest", "VolumeStore"]
