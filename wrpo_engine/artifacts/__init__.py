"""Artifacts: what a stage leaves behind, with a manifest that makes it trustworthy."""

from wrpo_engine.artifacts.manifest import FileEntry, InputEntry, Manifest
from wrpo_engine.artifacts.store import Artifact, ArtifactStore, ArtifactWriter
from wrpo_engine.artifacts.volume import VolumeStore

__all__ = ["Artifact", "ArtifactStore", "ArtifactWriter", "FileEntry", "InputEntry", "Manifest", "VolumeStore"]
