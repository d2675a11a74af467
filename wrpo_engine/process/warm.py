"""What a process imports so that stages can be forked from it, and what such a stage applies after the fork.

The embedded control plane names this module; `wrpo_devcluster.kubelet.warm_server` explains how it is used.
"""

from __future__ import annotations

import importlib
import os
import site
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from wrpo_engine.process.environment import prepare_environment

COMMANDS = (("wrpo-engine",), ("python", "-m", "wrpo_engine.training.launch"))
MODULES = (
    "torch",
    "threadpoolctl",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "wrpo_engine.__main__",
    "wrpo_engine.process.cli",
    "wrpo_engine.sampling.transformers_sampler",
    "wrpo_engine.scoring.reward_model",
)
"""Everything slow that most stages import, and nothing that starts threads, as polars does. vLLM and DeepSpeed change
the environment and settings of PyTorch for stages that do not use them.
"""
QUIET = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
_THREADS = "OMP_NUM_THREADS"
SETTLED = frozenset({_THREADS})
NATIVE = (
    # Interpreter, C library, locale.
    "GLIBC_", "LANG", "LC_", "LD_", "MALLOC_", "PYTHON", "TZ",
    # Threads and linear algebra.
    "BLIS_", "DNNL_", "GOMP_", "GOTO_", "KMP_", "MKL_", "NUMEXPR_", "OMP_", "ONEDNN_", "OPENBLAS_", "RAYON_",
    # Arrow, the two allocators of its kind, and tokenizers.
    "ARROW_", "JE_ARROW_", "MIMALLOC_", "TOKENIZERS_",
    # PyTorch and devices.
    "ATEN_", "CUDA_", "HIP_", "HSA_", "PYTORCH_", "ROCR_", "TORCH", "XPU_", "ZE_",
    # Looked for among all names.
    "FSSPEC_", "NETWORKX_", "TQDM_",
)  # fmt: skip


def prepare(environ: MutableMapping[str, str]) -> None:
    """Set what every stage sets before it imports libraries."""
    prepare_environment(environ)


def load() -> None:
    """Import the modules."""
    for name in MODULES:
        importlib.import_module(name)


def can_adopt(environ: Mapping[str, str]) -> bool:
    """Return whether the number of threads is a plain one, or not set."""
    threads = environ.get(_THREADS)
    return threads is None or (threads.isdigit() and int(threads) > 0)


def adopt(environ: Mapping[str, str]) -> None:
    """Apply the number of threads, and seed NumPy's global generator; Python seeds its own after a fork."""
    import numpy as np
    import threadpoolctl
    import torch

    np.random.seed()  # noqa: NPY002  (the generator that others may use)
    threads = environ.get(_THREADS)
    if threads is not None:
        torch.set_num_threads(int(threads))
        threadpoolctl.threadpool_limits(int(threads))
    else:
        # OpenBLAS was loaded with one thread.
        threadpoolctl.threadpool_limits(len(os.sched_getaffinity(0)), user_api="blas")


def sources() -> list[Path]:
    """Return the engine's files, and the directories of packages, which an installation changes."""
    engine = Path(__file__).parent.parent
    return [*engine.rglob("*.py"), *map(Path, site.getsitepackages())]
