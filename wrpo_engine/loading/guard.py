"""Guard around third-party loaders: every exception about a damaged file becomes one clear error."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wrpo_engine.errors import WrpoError

_OF_FILES = frozenset({errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP})
_OF_THE_MACHINE = ("OutOfMemoryError", "AcceleratorError", "DistError", "DistBackendError", "DistNetworkError")


@contextmanager
def loading(refuse: Callable[[BaseException], WrpoError]) -> Iterator[None]:
    """Turn every exception that the files can cause into the error that `refuse` makes of it.

    A loader of untrusted files may raise anything, and only loading them shows what is wrong. Errors that the
    machine causes (memory, devices, storage, other ranks) are passed on, because a retry may succeed.
    """
    try:
        yield
    except Exception as error:
        if _is_of_the_machine(error):
            raise
        raise refuse(error) from error
    except BaseException as error:
        # A Rust library's failed assertion; no subclass of Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise refuse(error) from error


def _is_of_the_machine(error: Exception) -> bool:
    if isinstance(error, WrpoError | MemoryError) or type(error).__name__ in _OF_THE_MACHINE:
        return True
    # Transformers raises OSError without a number for what it finds wrong itself.
    return isinstance(error, OSError) and error.errno is not None and error.errno not in _OF_FILES
