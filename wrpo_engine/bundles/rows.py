"""Values of a bundle's rows; an error names file, row and column."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wrpo_engine.bundles.places import FIELD
from wrpo_engine.errors import DataError
from wrpo_engine.formats.files import rows_of
from wrpo_engine.formats.messages import NotTurns, Role, turns_of
from wrpo_engine.formats.shown import names, shown
from wrpo_engine.prompts.split import is_unicode

_LARGEST_WHOLE = 2**53
"""Up to it, floating-point numbers hold each whole number."""


def table(path: Path) -> Iterator[Row]:
    """Yield the rows of a file with their numbers; DataError for texts that UTF-8 cannot hold."""
    # CSV has no null: an empty cell is one.
    has_null = path.suffix.lower() not in {".csv", ".tsv"}
    for number, values in rows_of(path, field=FIELD):
        row = Row(path, number, values if has_null else {name: text for name, text in values.items() if text})
        if not is_unicode(json.dumps(values, ensure_ascii=False, default=str)):
            raise row.fault("it holds half of a surrogate pair, which is not text")
        yield row


class Row:
    """One row of one file."""

    def __init__(self, path: Path, number: int, values: Mapping[str, Any]) -> None:
        self.path = path
        self.number = number
        self.values = values

    def fault(self, rule: str, hint: str = "Correct the file.") -> DataError:
        """Return the error for this row."""
        return DataError(f"row {self.number} of {self.path}: {rule}", code="BundleRow", field=FIELD, hint=hint)

    def first(self, *columns: str) -> tuple[str, Any]:
        """Return the name and value of the first column that has one; DataError if none has."""
        for column in columns:
            if self.values.get(column) is not None:
                return column, self.values[column]
        raise self.fault(f"it has no {' or '.join(columns)}; its columns: {names(self.values) or 'none'}")

    def text(self, *columns: str) -> str:
        """Return a text as it is."""
        column, value = self.first(*columns)
        if not isinstance(value, str):
            raise self.fault(f"{column} is {shown(value)}, but a text is needed")
        return value

    def filled(self, *columns: str) -> str:
        """Return a text that is not blank."""
        text = self.text(*columns)
        if not text.strip():
            raise self.fault(f"{' or '.join(column for column in columns if column in self.values)} is empty")
        return text

    def optional(self, column: str) -> str:
        """Return a text, or an empty one if the column is absent."""
        return "" if self.values.get(column) is None else self.text(column)

    def key(self, *columns: str) -> str:
        """Return an id, a text or a whole number, as a text."""
        column, value = self.first(*columns)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise self.fault(f"{column} is {shown(value)}, but a text or a whole number is needed")
        return str(value)

    def number_of(self, column: str) -> float:
        """Return a finite number, which CSV holds as a text."""
        _, value = self.first(column)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self.fault(f"{column} is {shown(value)}, but a number is needed")
        return number

    def whole(self, column: str) -> int:
        """Return a whole number, which CSV holds as a text."""
        number = self.number_of(column)
        if not number.is_integer() or abs(number) > _LARGEST_WHOLE:
            raise self.fault(f"{column} is {number:g}, but a whole number is needed")
        return int(number)

    def texts(self, column: str) -> tuple[str, ...]:
        """Return a list of texts; a text alone is a list of one."""
        _, value = self.first(column)
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
            raise self.fault(f"{column} is {shown(value)}, but a text or a list of texts is needed")
        return tuple(value)

    def conversation(self, column: str) -> tuple[tuple[dict[str, str], ...], str]:
        """Return the messages before the last one, and the text of that, which the user must have said."""
        _, value = self.first(column)
        try:
            turns = turns_of(value, speaker=Role.USER)
        except NotTurns as fault:
            raise self.fault(f"{column} {fault}") from fault
        if not turns or turns[-1].role is not Role.USER:
            raise self.fault(f"{column} must end with a message of the user")
        return tuple({"role": turn.role.value, "content": turn.text} for turn in turns[:-1]), turns[-1].text
