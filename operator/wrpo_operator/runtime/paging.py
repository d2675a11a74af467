"""Page sizes of lists, adapted so that a page takes some MiB for objects of any size.

Objects have up to 1.5 MB each, and a server counts a page in objects. A list therefore starts with the size that
fitted the largest objects of the last list. The size grows from page to page, and shrinks after a page that was too
large.
"""

from __future__ import annotations

PAGE_BYTES = 4 * 1024 * 1024
FIRST_PAGE = 4
"""Objects of the very first page, because they may have any size."""
LARGEST_PAGE = 100
GROWTH = 2
REACH = 8
"""Maximum growth of a page, relative to the smallest page that fitted in the last list."""


class Pager:
    """Page sizes of successive lists."""

    def __init__(self) -> None:
        self.limit = FIRST_PAGE
        self._most = LARGEST_PAGE
        self._worst = LARGEST_PAGE

    def read(self, items: int, size: int) -> None:
        """Record the number of objects and bytes of a page."""
        if items == 0:
            return
        fits = max(1, min(LARGEST_PAGE, PAGE_BYTES * items // max(1, size)))
        self._worst = min(self._worst, fits)
        self.limit = min(fits, self.limit * GROWTH, self._most)

    def begin(self) -> None:
        """Start a further list."""
        self.limit = self._worst
        self._most = min(LARGEST_PAGE, self._worst * REACH)
        self._worst = LARGEST_PAGE
