"""Parts are written beside sampling: in order, all of them, and errors are not lost."""

from __future__ import annotations

import threading

import pytest
from support.patience import LIMIT_S

from wrpo_engine.sampling.publishing import Publisher


def test_sampling_does_not_wait_for_a_write() -> None:
    may_write, written = threading.Event(), []

    def slow() -> None:
        assert may_write.wait(LIMIT_S)
        written.append("slow")

    with Publisher() as publisher:
        publisher.submit(slow)
        publisher.submit(lambda: written.append("second"))
        assert written == []
        may_write.set()
    assert written == ["slow", "second"]


def test_a_storage_that_is_too_slow_holds_sampling_back() -> None:
    started, may_write = threading.Event(), threading.Event()

    def slow() -> None:
        started.set()
        assert may_write.wait(LIMIT_S)

    def release() -> None:
        assert started.wait(LIMIT_S)
        may_write.set()

    threading.Thread(target=release).start()
    with Publisher(max_waiting=1) as publisher:
        publisher.submit(slow)
        publisher.submit(lambda: None)
        # The second one does not fit: this returned only after the first was written.
        assert may_write.is_set()


def fail() -> None:
    raise OSError(28, "No space left on device")


def test_an_error_of_a_write_ends_the_block() -> None:
    with pytest.raises(OSError, match="No space left"), Publisher() as publisher:
        publisher.submit(fail)


def test_an_error_of_a_write_does_not_wait_for_the_end() -> None:
    accepted = []

    def publish_parts() -> None:
        with Publisher(max_waiting=1) as publisher:
            for part in range(3):
                publisher.submit(fail)
                accepted.append(part)

    with pytest.raises(OSError, match="No space left"):
        publish_parts()
    assert len(accepted) < 3


def test_what_is_finished_is_written_when_sampling_ends_with_an_error() -> None:
    written = []

    def publish_and_fail() -> None:
        with Publisher() as publisher:
            publisher.submit(lambda: written.append(1))
            raise RuntimeError("engine")

    with pytest.raises(RuntimeError, match="engine"):
        publish_and_fail()
    assert written == [1]
