"""Lines of UTF-8 text and JSON objects from files; what cannot be decoded is named by file, line and byte."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wrpo_engine.errors import DataError

_PEEK_BYTES = 4096


def decoded_lines(path: Path, *, field: str | None = None) -> Iterator[str]:
    """Yield the lines with their ends; a byte order mark at the start is dropped.

    Raises DataError, naming file, line and byte, where a line is not UTF-8.
    """
    offset = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            content = line
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                content = line[len(codecs.BOM_UTF8) :]
            try:
                yield content.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset + len(line) - len(content) + error.start
                byte = content[error.start]
                raise DataError(
                    f"line {number} of {path} is not UTF-8: byte 0x{byte:02x} at offset {at} of the file",
                    code="NotUtf8",
                    field=field,
                    hint="Convert the file to UTF-8, for example with `iconv -f LATIN1 -t UTF-8`.",
                ) from error
            offset += len(line)


def json_objects(path: Path, *, field: str | None = None) -> Iterator[tuple[int, Any]]:
    """Yield (row number, value) of a JSON list, or of one value a line: both are common under either name."""
    with path.open("rb") as stream:
        is_list = stream.read(_PEEK_BYTES).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    if is_list:
        text = "".join(decoded_lines(path, field=field))
        try:
            values = json.loads(text)
        except ValueError as error:
            raise unreadable(path, error, field=field) from error
        yield from enumerate(values, start=1)
        return
    for number, line in enumerate(decoded_lines(path, field=field), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise unreadable(path, error, line=number, field=field) from error
        yield number, value


def unreadable(path: Path, error: Exception, *, line: int | None = None, field: str | None = None) -> DataError:
    """Return the error for a file that is damaged."""
    where = f"line {line} of {path}" if line else f"{path}"
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(
        f"{where} cannot be read: {reason}", code="DatasetDamaged", field=field, hint="Correct or replace the file."
    )
