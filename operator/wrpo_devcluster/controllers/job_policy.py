"""Evaluation of a Job's podFailurePolicy for a failed pod."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wrpo_devcluster.client import JsonObject


class FailureAction(StrEnum):
    """What follows from a pod's failure. COUNT: it counts towards the backoff limit."""

    FAIL_JOB = "FailJob"
    FAIL_INDEX = "FailIndex"
    IGNORE = "Ignore"
    COUNT = "Count"


@dataclass(frozen=True, slots=True)
class PolicyMatch:
    """The action of the rule that matched, and the text of the condition that reports it."""

    action: FailureAction
    message: str


NO_MATCH = PolicyMatch(FailureAction.COUNT, "")


def match_failure(policy: JsonObject | None, pod: JsonObject) -> PolicyMatch:
    """Return the action of the first matching rule; without a match the failure counts."""
    for index, rule in enumerate((policy or {}).get("rules") or []):
        text = _exit_code_match(rule, pod) if rule.get("onExitCodes") else _condition_match(rule, pod)
        if text:
            action = FailureAction(rule["action"])
            return PolicyMatch(action, f"{text} matching {action} rule at index {index}")
    return NO_MATCH


def _exit_code_match(rule: JsonObject, pod: JsonObject) -> str:
    wanted = rule["onExitCodes"]
    status, meta = pod.get("status") or {}, pod["metadata"]
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        terminated = (container.get("state") or {}).get("terminated")
        if not terminated or terminated.get("exitCode", 0) == 0:
            continue
        if wanted.get("containerName") not in {None, "", container["name"]}:
            continue
        if (terminated["exitCode"] in wanted["values"]) == (wanted["operator"] == "In"):
            return (
                f"Container {container['name']} for pod {meta['namespace']}/{meta['name']} "
                f"failed with exit code {terminated['exitCode']}"
            )
    return ""


def _condition_match(rule: JsonObject, pod: JsonObject) -> str:
    have = {(c["type"], c["status"]) for c in (pod.get("status") or {}).get("conditions") or []}
    meta = pod["metadata"]
    for pattern in rule.get("onPodConditions") or []:
        if (pattern["type"], pattern.get("status") or "True") in have:
            return f"Pod {meta['namespace']}/{meta['name']} has condition {pattern['type']}"
    return ""
