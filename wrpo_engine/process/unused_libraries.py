"""Libraries that others import at their start for functions that no stage calls. Without them, stages start sooner."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from importlib.abc import MetaPathFinder

from typing_extensions import override

_ASKING: Mapping[str, tuple[str, str]] = {
    # Assisted generation, which finds a threshold with scikit-learn; that imports SciPy and pandas.
    "transformers.generation.candidate_generator": ("transformers.utils", "is_sklearn_available"),
    # Losses of object detection, which match boxes with SciPy.
    "transformers.loss.loss_utils": ("transformers.utils", "is_scipy_available"),
    # The configuration of SageMaker.
    "accelerate.commands.config.sagemaker": ("accelerate.utils.imports", "is_boto3_available"),
}
"""Module that imports a library if it is installed -> module and name of the function by which it asks."""


class _Denials(MetaPathFinder):
    """Finder that finds nothing: before a module that asks for a library is imported, it denies that there is one."""

    @override
    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname in _ASKING:
            module, question = _ASKING[fullname]
            setattr(importlib.import_module(module), question, lambda: False)


def skip_unused_libraries() -> None:
    """Let Transformers and Accelerate import none of them. A direct import of one still succeeds."""
    if not any(isinstance(finder, _Denials) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Denials())
