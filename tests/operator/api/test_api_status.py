"""A status that somebody wrote by hand, and texts of any length."""

from __future__ import annotations

from typing import Any

import pytest

from wrpo_operator.api.status import Attempt, AttemptState, Blocker, ExperimentStatus, parse_status

ATTEMPT = {"number": 1, "child": "c", "state": "Running"}


def stored(**attempt: Any) -> dict[str, Any]:
    return {"stages": [{"name": "prepare", "state": "Running", "hash": "h", "attempts": [{**ATTEMPT, **attempt}]}]}


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "soon", "2026-01-01T12:00:00", ""])
@pytest.mark.parametrize("field", ["startedAt", "finishedAt", "pendingSince"])
def test_a_time_that_nobody_can_calculate_with_is_not_known(field: str, time: str) -> None:
    (stage,) = parse_status(stored(**{field: time})).stages
    assert stage.attempts == (Attempt(number=1, child="c", state=AttemptState.RUNNING),)


def test_a_sound_time_stays() -> None:
    (stage,) = parse_status(stored(startedAt="2026-01-01T12:00:00Z")).stages
    assert stage.attempts[0].started_at == "2026-01-01T12:00:00Z"


@pytest.mark.parametrize("length", [4_095, 4_096, 4_097, 1_000_000])
def test_texts_are_cut_to_their_fields_however_they_get_there(length: int) -> None:
    text = "\U0001f999" * length
    made = Blocker(object="o" * 400, reason="r", message=text, since="2026-01-01T12:00:00Z")
    copied = made.model_copy(update={"message": text + "x"})
    read = parse_status({"blockers": [{**made.model_dump(), "message": text}]}).blockers[0]
    assert made.message == (text if length <= 4_096 else text[:4_095] + "…")
    assert (len(made.object), len(copied.message), read.message) == (320, min(length + 1, 4_096), made.message)


def test_a_status_without_sense_is_made_anew() -> None:
    assert parse_status({"phase": "Sleeping"}) == ExperimentStatus()
