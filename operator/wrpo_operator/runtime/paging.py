"""How many objects to ask for at once, so that a page of a list takes some MiB whatever their size.

Objects are up to 1.5 MB each, and a server counts a page in objects. So a list begins with as many as fitted where the
last one met the largest, grows from page to page, and shrinks as soon as a page was too large.
"""

from __future__ import annotations

PAGE_BYTES = 4 * 1024 * 1024
FIRST_PAGE = 4
"""Objects of the first page of all: they may be of any size."""
LARGEST_PAGE = 100
GROWTH = 2
REACH = 8
"""A list never asks for more than this many times what fitted in the worst place of the last one."""


class Pager:
    """The page sizes of one list after another."""

    def __init__(self) -> None:
        self.limit = FIRST_PAGE
        self._most = LARGEST_PAGE
        self._worst = LARGEST_PAGE

    def read(self, items: int, size: int) -> None:
        """Take note of a page: how many objects it held, in how many bytes."""
        if items == 0:
            return
        fits = max(1, min(LARGEST_PAGE, PAGE_BYTES * items // max(1, size)))
        self._worst = min(self._worst, fits)
        self.limit = min(fits, self.limit * GROWTH, self._most)

    def begin(self) -> None:
        """Begin a further list."""
        self.limit = self._worst
        self._most = min(LARGEST_PAGE, self._worst * REACH)
        self._worst = LARGEST_PAGE
