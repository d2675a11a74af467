"""Environment defaults, set before heavy libraries are imported: they write caches, and the root may be read-only."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

_CACHES = {
    "HF_HOME": "huggingface",
    "VLLM_CACHE_ROOT": "vllm",
    "VLLM_CONFIG_ROOT": "vllm-config",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "torch-extensions",
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
}


def cache_root(environ: MutableMapping[str, str]) -> Path:
    """Return a writable directory for caches: below XDG_CACHE_HOME or HOME where they can be written, else TMPDIR."""
    home = environ.get("HOME")
    candidates = [environ.get("XDG_CACHE_HOME"), f"{home}/.cache" if home else None]
    for candidate in candidates:
        if candidate and _can_write(Path(candidate)):
            return Path(candidate)
    return Path(environ.get("TMPDIR") or "/tmp") / "wrpo-cache"  # noqa: S108 (a cache, per pod)


def prepare_environment(environ: MutableMapping[str, str]) -> None:
    """Fill in what is not set; what the user set stays."""
    root = cache_root(environ)
    environ.setdefault("XDG_CACHE_HOME", str(root))
    for name, directory in _CACHES.items():
        environ.setdefault(name, str(root / directory))
    for name, value in _SETTINGS.items():
        environ.setdefault(name, value)


def _can_write(path: Path) -> bool:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK)
