"""Environment defaults, set before heavy libraries are imported: they write caches, and the root may be read-only."""

from __future__ import annotations

import importlib.util
import os
import pwd
from collections.abc import MutableMapping
from pathlib import Path

_CACHES = {
    "HF_HOME": "huggingface",
    "VLLM_CACHE_ROOT": "vllm",
    "VLLM_CONFIG_ROOT": "vllm-config",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "torch-extensions",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "DG_JIT_CACHE_DIR": "deep-gemm",
    "CUDA_CACHE_PATH": "nvidia",
    "MPLCONFIGDIR": "matplotlib",
}
_SETTINGS = {
    # No usage statistics are sent.
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Forking after tokenizers used threads otherwise warns or hangs.
    "TOKENIZERS_PARALLELISM": "false",
    # Our own progress is shown; libraries' bars only clutter logs.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TRANSFORMERS_VERBOSITY": "error",
    # Why NCCL cannot use a device or a network is otherwise not said anywhere.
    "NCCL_DEBUG": "WARN",
}
_USER_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")
"""Where getpass looks for the user's name before it asks the system."""
_USER = "wrpo"
_ALLOCATOR = "PYTORCH_ALLOC_CONF"
_ALLOCATOR_NAMES = (_ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
_CUBIN_DIR = "FLASHINFER_CUBIN_DIR"


def cache_root(environ: MutableMapping[str, str]) -> Path:
    """Return a writable directory for caches: below XDG_CACHE_HOME or HOME where they can be written, else TMPDIR."""
    home = environ.get("HOME")
    candidates = [environ.get("XDG_CACHE_HOME"), f"{home}/.cache" if home else None]
    for candidate in candidates:
        if candidate and _can_write(Path(candidate)):
            return Path(candidate)
    return Path(environ.get("TMPDIR") or "/tmp") / "wrpo-cache"  # noqa: S108 (a cache, per pod)


def prepare_environment(environ: MutableMapping[str, str], *, is_training: bool = False) -> None:
    """Fill in what is not set; what the user set stays."""
    root = cache_root(environ)
    environ.setdefault("XDG_CACHE_HOME", str(root))
    for name, directory in _CACHES.items():
        environ.setdefault(name, str(root / directory))
    for name, value in _SETTINGS.items():
        environ.setdefault(name, value)
    if not any(environ.get(name) for name in _USER_NAMES) and not _is_known_user(os.getuid()):
        # Libraries that name a cache by the user fail for a user ID without a name.
        environ["USER"] = environ["LOGNAME"] = _USER
    if is_training and not any(environ.get(name) for name in _ALLOCATOR_NAMES):
        # Micro-batches of ever other lengths leave gaps in the GPU's memory that no later tensor fits into.
        environ[_ALLOCATOR] = "expandable_segments:True"


def prepare_cubins(environ: MutableMapping[str, str], packaged: Path | None = None) -> None:
    """Let FlashInfer find its package of kernels below the caches if it must not write into the package.

    FlashInfer adds links and files next to the kernels, which fails where the root is read-only or belongs to another
    user. The kernels themselves stay in the package: the copy consists of links. `packaged` is their directory; by
    default that of the package flashinfer-cubin, if it is installed.
    """
    source = packaged or _packaged_cubins()
    if environ.get(_CUBIN_DIR) or source is None or not source.is_dir() or os.access(source, os.W_OK):
        return
    target = cache_root(environ) / "flashinfer-cubins"
    for directory, _, files in os.walk(source):
        place = target / Path(directory).relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        for name in files:
            link = place / name
            if not link.is_symlink():
                link.symlink_to(Path(directory) / name)
    environ[_CUBIN_DIR] = str(target)


def _packaged_cubins() -> Path | None:
    spec = importlib.util.find_spec("flashinfer_cubin")
    return None if spec is None or spec.origin is None else Path(spec.origin).with_name("cubins")


def _is_known_user(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _can_write(path: Path) -> bool:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK)
