"""Progress bar and log lines on one terminal."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from rich.console import Console

from wrpo_engine.process.progress import BarSink, ProgressState


def test_log_lines_stand_above_the_bar_and_handlers_get_their_stream_back(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler(terminal)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        sink = BarSink("train", Console(file=terminal, force_terminal=True, width=120))
        sink.show(ProgressState(1, 4, 1.0, {"loss": 0.5}, "step 1, 2 rows/s"))
        terminal.truncate(0)
        logging.getLogger("wrpo_engine").warning("a line of the log")
        written = terminal.getvalue()
        sink.close()
    finally:
        root.removeHandler(handler)
    assert handler.stream is terminal
    before, found, after = written.partition("a line of the log\n")
    assert found
    assert "\x1b[2K" in before, "the bar is erased first"
    assert "train" in after, "and drawn again below"


def test_a_handler_of_another_stream_is_left_alone() -> None:
    elsewhere = io.StringIO()
    handler = logging.StreamHandler(elsewhere)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        sink = BarSink("train", Console(file=io.StringIO(), force_terminal=True))
        logging.getLogger("wrpo_engine").warning("to a file")
        sink.close()
    finally:
        root.removeHandler(handler)
    assert elsewhere.getvalue() == "to a file\n"
