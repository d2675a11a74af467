"""Follow a Job of the quick start or the study: its log, why it waits, and how it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

POLL_S = 2.0


def condition(obj: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the condition of this type if it is True; else an empty one."""
    conditions = obj.get("status", {}).get("conditions", [])
    return next((dict(c) for c in conditions if c["type"] == kind and c["status"] == "True"), {})


@dataclass(frozen=True, slots=True)
class JobRun:
    """A Job that builds something and is applied again by every run of the command that needs it."""

    name: str
    kubectl: Callable[..., str]
    """Runs kubectl in the Job's namespace and returns its output; raises ClickException if it fails."""
    say: Callable[[str], None]
    flags: str
    """Flags with which a user's kubectl reaches the Job."""
    retry: str
    """Command that retries."""

    def run(self, documents: str) -> None:
        """Apply the YAML documents, the Job among them, and show its log until it is complete.

        A failed Job is replaced. Raises ClickException if it fails.
        """
        if condition(self._job(), "Failed"):
            self.kubectl("delete", "job", self.name, "--wait")
        self.kubectl("apply", "-f", "-", stdin=documents)
        if condition(self._job(), "Complete"):
            # The log could be that of any of its pods, also of a stopped one.
            self.say("      already built")
            return
        shown, said = 0, ""
        while True:
            job = self._job()
            shown = self._show_new_lines(shown)
            why = "" if shown else self._waiting_reason()
            if why not in {"", said}:
                self.say(f"      waiting: {why}")
                said = why
            if condition(job, "Complete"):
                return
            if failed := condition(job, "Failed"):
                raise click.ClickException(
                    f"the Job {self.name} failed: {failed.get('message', '')}\n"
                    f"See `kubectl {self.flags} logs job/{self.name}`; `{self.retry}` retries."
                )
            time.sleep(POLL_S)

    def _job(self) -> dict[str, Any]:
        out = self.kubectl("get", "job", self.name, "-o", "json", "--ignore-not-found")
        return dict(json.loads(out)) if out.strip() else {}

    def _show_new_lines(self, shown: int) -> int:
        """Print the lines of the Job's log after the first `shown`; return how many there are now."""
        try:
            lines = self.kubectl("logs", f"job/{self.name}").splitlines()
        except click.ClickException:  # its container has not started
            return shown
        first = shown if len(lines) >= shown else 0  # shorter: another pod took over
        for line in lines[first:]:
            self.say(f"      {line}")
        return len(lines)

    def _waiting_reason(self) -> str:
        """Return why the Job's pod does not run, as the cluster reports it; empty if nothing blocks it."""
        pods = json.loads(self.kubectl("get", "pods", "-l", f"job-name={self.name}", "-o", "json"))["items"]
        for pod in pods:
            for status in pod.get("status", {}).get("containerStatuses", []):
                waiting = status.get("state", {}).get("waiting", {})
                if waiting.get("message"):
                    return f"{waiting['reason']}: {waiting['message']}"
            for entry in pod.get("status", {}).get("conditions", []):
                if entry["type"] == "PodScheduled" and entry["status"] == "False":
                    return str(entry.get("message", ""))
        return ""
