"""The termination message fits and stays readable."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.config import ErrorInfo, TerminationMessage
from wrpo_engine.process.termination import encode, write

TEXTS = st.text(max_size=6000)


@given(
    message=TEXTS,
    hint=st.none() | TEXTS,
    field=st.none() | TEXTS,
    metrics=st.dictionaries(st.text(max_size=60), st.floats(), max_size=80),
)
def test_any_message_is_valid_json_of_at_most_4096_bytes(
    message: str, hint: str | None, field: str | None, metrics: dict[str, float]
) -> None:
    error = ErrorInfo(code="SomeCode", message=message, hint=hint, field=field)
    data = encode(TerminationMessage(outcome="Failed", error=error, metrics=metrics))
    assert len(data) <= 4096
    assert TerminationMessage.model_validate_json(data).outcome == "Failed"


def test_the_longest_text_is_cut_first() -> None:
    error = ErrorInfo(code="X", message="m" * 9000, hint="short hint")
    read = TerminationMessage.model_validate_json(encode(TerminationMessage(outcome="Failed", error=error)))
    assert read.error is not None
    assert read.error.hint == "short hint"
    assert read.error.message.startswith("mmm")
    assert read.error.message.endswith("…")
    assert len(read.error.message) > 3900


def test_a_message_that_fits_is_not_touched() -> None:
    message = TerminationMessage(outcome="Succeeded", rows=3, metrics={"loss": 0.5}, artifact="train/ab", digest="cd")
    assert TerminationMessage.model_validate_json(encode(message)) == message


def test_metrics_are_left_out_from_the_last_name_on() -> None:
    metrics = {f"metric_{index:03d}": 0.123456789 for index in range(300)}
    read = json.loads(encode(TerminationMessage(outcome="Succeeded", metrics=metrics)))
    kept = list(read["metrics"])
    assert kept == sorted(metrics)[: len(kept)]
    assert 50 < len(kept) < 300


def test_numbers_that_json_does_not_know_are_left_out() -> None:
    read = json.loads(encode(TerminationMessage(outcome="Succeeded", metrics={"a": float("nan"), "b": 1.0})))
    assert read["metrics"] == {"b": 1.0}


def test_the_cause_is_not_overwritten_by_what_it_caused_in_another_rank(tmp_path: Path) -> None:
    environ = {"WRPO_TERMINATION_MESSAGE_PATH": str(tmp_path / "message"), "WORLD_SIZE": "2"}
    cause = TerminationMessage(outcome="Failed", error=ErrorInfo(code="RewardNotFinite", message="nan in row 3"))
    write(cause, environ)
    write(TerminationMessage(outcome="Failed", error=ErrorInfo(code="InternalError", message="peer gone")), environ)
    write(TerminationMessage(outcome="Interrupted"), environ)
    assert TerminationMessage.model_validate_json((tmp_path / "message").read_bytes()) == cause


def test_a_diagnosed_error_replaces_an_undiagnosed_one(tmp_path: Path) -> None:
    environ = {"WRPO_TERMINATION_MESSAGE_PATH": str(tmp_path / "message"), "WORLD_SIZE": "2"}
    write(TerminationMessage(outcome="Failed", error=ErrorInfo(code="InternalError", message="peer gone")), environ)
    cause = TerminationMessage(outcome="Failed", error=ErrorInfo(code="StorageFull", message="full"))
    write(cause, environ)
    assert TerminationMessage.model_validate_json((tmp_path / "message").read_bytes()) == cause
