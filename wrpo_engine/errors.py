"""The engine's error tree. Each error carries an exit code, a reason, and what the user can do about it."""

from __future__ import annotations

from typing import ClassVar

from wrpo_engine.exit_codes import ExitCode


class WrpoError(Exception):
    """An outcome that was foreseen. `str(error)` is the message; `field` names a field of the experiment's spec."""

    exit_code: ClassVar[int] = ExitCode.UNEXPECTED
    code: str = "InternalError"

    def __init__(
        self, message: str, *, code: str | None = None, field: str | None = None, hint: str | None = None
    ) -> None:
        # Names and values of data may hold halves of surrogate pairs, which no terminal and no JSON can.
        message = message.encode(errors="backslashreplace").decode()
        super().__init__(message)
        self.message = message
        self.field = field
        self.hint = hint
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        """Let an error pass from one process to another, also of a class with other arguments than the message."""
        return _restored, (type(self), self.message), self.__dict__


def _restored(kind: type[WrpoError], message: str) -> WrpoError:
    return kind.__new__(kind, message)


class ConfigError(WrpoError):
    """A value of the configuration breaks a rule; retrying cannot help."""

    exit_code: ClassVar[int] = ExitCode.CONFIG
    code = "InvalidConfig"

    def __init__(self, field: str, value: object, rule: str, hint: str, *, code: str | None = None) -> None:
        shown = f"{value!r}" if isinstance(value, str) else f"{value}"
        super().__init__(f"{field} is {shown}: {rule}", code=code, field=field, hint=hint)


class UsageError(WrpoError):
    """The command line is wrong."""

    exit_code: ClassVar[int] = ExitCode.USAGE
    code = "InvalidUsage"


class DataError(WrpoError):
    """Input breaks a rule: a data set, an artifact, a model's output."""

    exit_code: ClassVar[int] = ExitCode.BAD_DATA
    code = "InvalidData"


class MissingInputError(WrpoError):
    """An upstream artifact does not exist."""

    exit_code: ClassVar[int] = ExitCode.NO_INPUT
    code = "InputMissing"


class StorageError(WrpoError):
    """The storage is full, read-only or forbidden; a retry cannot succeed until an administrator changes that."""

    exit_code: ClassVar[int] = ExitCode.CANNOT_CREATE
    code = "StorageUnavailable"


class TemporaryError(WrpoError):
    """The next attempt may succeed, for example after an interrupted download."""

    exit_code: ClassVar[int] = ExitCode.TEMPORARY
    code = "Temporary"


class AlreadyCommitted(WrpoError):  # noqa: N818 (an outcome, not a fault)
    """Another writer has committed the artifact meanwhile; the stage returns that one."""

    exit_code: ClassVar[int] = ExitCode.TEMPORARY
    code = "AlreadyCommitted"


class Interrupted(WrpoError):  # noqa: N818 (an outcome, not a fault)
    """The process was asked to stop; what it finished is kept and the next attempt continues."""

    exit_code: ClassVar[int] = ExitCode.INTERRUPTED
    code = "Interrupted"

    def __init__(
        self, message: str = "stopped on request; finished work is kept and the next attempt continues"
    ) -> None:
        super().__init__(message)


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return an exception's first line that says something, else its class; at most `limit` characters."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:limit]
