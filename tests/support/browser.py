"""Open a page of ours in a real browser and report what a person would notice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

WIDTHS = (1280, 400)
"""Of a laptop's and a telephone's window, in pixels."""
# --no-sandbox: CI runs as root. The rest keeps the browser itself from asking anything of a network.
_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
_MEASURE = """() => {
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const sizes = [], beyond = [];
  const scrolls = (node) => {
    for (let at = node; at && at !== document.body; at = at.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(at).overflowX)) return true;
    return false;
  };
  for (let node = words.nextNode(); node; node = words.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || !parent.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (!parent.closest("svg")) sizes.push(parseFloat(getComputedStyle(parent).fontSize));
    if (box.right > window.innerWidth + 1 && !scrolls(parent)) beyond.push(node.data.trim().slice(0, 60));
  }
  return {
    width: document.documentElement.scrollWidth, window: window.innerWidth,
    smallest: Math.min(...sizes), beyond: beyond,
    pictures: [...document.querySelectorAll("svg, img")].map((one) => one.getBoundingClientRect().width),
  };
}"""


@dataclass(frozen=True, kw_only=True)
class View:
    """A page in a window of one width."""

    complaints: tuple[str, ...]
    """Errors and warnings of the console, among them violations of the page's content security policy."""
    requests: tuple[str, ...]
    """URLs that the page asked for, without its own."""
    overflow: float
    """Pixels by which the page is wider than its window."""
    smallest_text: float
    """Font size in pixels, outside pictures."""
    beyond: tuple[str, ...]
    """Texts that end to the right of the window and cannot be scrolled to within their table."""
    pictures: tuple[float, ...]
    """Widths in pixels."""


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium; fails if the machine has none."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    assert found, "no Chromium on this machine: `apt-get install chromium`"
    with sync_playwright() as started:
        launched = started.chromium.launch(executable_path=found, args=[*_ARGUMENTS])
        try:
            yield launched
        finally:
            launched.close()


def view(opened: Browser, file: Path, width: int, picture: Path | None = None) -> View:
    """Open a file in a window of this width, measure it, and write a picture of the whole page if asked to."""
    page = opened.new_page(viewport={"width": width, "height": 900})
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.resolve().as_uri())
    found = page.evaluate(_MEASURE)
    if picture is not None:
        page.screenshot(path=str(picture), full_page=True)
    page.close()
    return View(
        complaints=tuple(complaints),
        requests=tuple(url for url in requests if url != file.resolve().as_uri() and not url.startswith("data:")),
        overflow=max(0.0, found["width"] - found["window"]),
        smallest_text=found["smallest"],
        beyond=tuple(found["beyond"]),
        pictures=tuple(found["pictures"]),
    )


def assert_readable(file: Path) -> None:
    """Demand that a page loads without a complaint or request and is readable in windows of all `WIDTHS`."""
    with browser() as opened:
        for width in WIDTHS:
            seen = view(opened, file, width)
            assert seen.complaints == ()
            assert seen.requests == ()
            assert (seen.overflow, seen.beyond) == (0, ()), f"at {width} pixels"
            assert seen.smallest_text >= 11, f"at {width} pixels"
            assert all(0 < picture <= width for picture in seen.pictures), f"at {width} pixels"
