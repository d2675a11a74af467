"""Wrapper of a tool's command: every foreseen error is one line with a hint and an exit code of the contract."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import click

from wrpo_engine.config import ExitCode
from wrpo_engine.errors import WrpoError
from wrpo_engine.process.storage_errors import storage_error


def run_command(command: click.Command, arguments: Sequence[str], *, prog_name: str) -> int:
    """Return the command's exit code."""
    return guarded(lambda: int(command.main(list(arguments), prog_name=prog_name, standalone_mode=False) or 0))


def guarded(work: Callable[[], int]) -> int:
    """Return the exit code of `work`, or that of a foreseen error after its message."""
    try:
        return work()
    except click.ClickException as error:
        error.show()
        return ExitCode.USAGE
    except WrpoError as error:
        return _failed(error)
    except OSError as error:
        known = storage_error(error)
        if known is None:
            raise
        return _failed(known)


def _failed(error: WrpoError) -> int:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code
