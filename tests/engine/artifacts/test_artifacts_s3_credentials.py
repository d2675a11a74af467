"""Credentials that a role gives: whether they may come, and how long they are waited for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from botocore.exceptions import CredentialRetrievalError

from wrpo_engine.artifacts.s3_client import has_role, wait_for_credentials


def late(answers: list[object]) -> tuple[Callable[[], object], list[float]]:
    """What looks for credentials, and what its sleeping moves."""
    left, now = list(answers), [0.0]

    def find() -> object:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return find, now


AWAY = CredentialRetrievalError(provider="container-role", error_msg="refused")
LOOKS: dict[str, tuple[list[object], float, float]] = {
    "at once": (["keys"], 10, 0),
    "after a while": ([None, AWAY, None, "keys"], 10, 1.5),
    "never": ([None], 3, 3),
    "never, with keys in the environment": ([None], 0, 0),
}


@pytest.mark.parametrize(("answers", "seconds", "waited"), LOOKS.values(), ids=LOOKS.keys())
def test_a_role_that_comes_after_the_pod_is_waited_for(answers: list[object], seconds: float, waited: float) -> None:
    find, now = late(answers)
    wait_for_credentials(
        find, seconds=seconds, sleep=lambda s: now.__setitem__(0, now[0] + s), monotonic=lambda: now[0]
    )
    assert now[0] == waited


ROLES: dict[str, tuple[dict[str, str], bool]] = {
    "nothing is set": ({}, True),
    "a role is named": ({"AWS_ROLE_ARN": "arn"}, True),
    "static keys": ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, False),
    "half of them": ({"AWS_ACCESS_KEY_ID": "a"}, False),
    "no metadata": ({"AWS_EC2_METADATA_DISABLED": "true"}, False),
}


@pytest.mark.parametrize(("environ", "expected"), ROLES.values(), ids=ROLES.keys())
def test_whether_a_role_may_come(environ: dict[str, str], expected: bool) -> None:
    assert has_role(environ) is expected
