"""Refusals of the API server: messages for the user, and times of retries.

A refusal that names its cause is reported immediately, another error after TOLERATED_ERRORS replies in a row.
A refused attempt is not applied again before its retry is due, regardless of reconciles. An edit makes it due.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from wrpo_operator.api import messages, names
from wrpo_operator.api.backends import BACKENDS
from wrpo_operator.api.conditions import Reason
from wrpo_operator.plan.model import Experiment, Manifest, Refusal
from wrpo_operator.runtime.diagnostics import refusal_reason
from wrpo_operator.runtime.errors import KubeError
from wrpo_operator.runtime.rendered_paths import user_paths

Key = tuple[str, str]
TOLERATED_ERRORS = 3
"""Consecutive errors after which a possibly transient one is reported."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
REST_S = 600.0
"""Seconds until the retry of a final refusal, because the server's version or settings may change."""
STATUS = "(status)"
"""Key, instead of a stage, of a refused status."""
NAMESPACE_TERMINATING = "NamespaceTerminating"
MAX_WORDS = 1500
"""Maximum characters of the server's message, which may contain a whole Job; the remedy must fit too."""
_PASSING = frozenset({0, 401, 404, 408, 409, 429})
_FINAL = frozenset({400, 413, 415, 422})
_TYPED = re.compile(
    r"failed to create typed|failed to convert new object|field not declared in schema|cannot unmarshal"
    r"|quantities must match|unable to parse quantity|request is too large|duplicate entries|strict decoding error"
)
"""Phrases of replies 500 that concern the object itself."""
_OWN = frozenset({"", "ConfigMap", "ServiceAccount", names.KIND})
"""Kinds of objects that contain nothing of the user's template."""
_NOT_SERVED = re.compile(r"could not find the requested resource|page not found|the server doesn't have a resource")
"""Phrases of a 404 about a kind that was just removed; discovery notices it within seconds."""
_TAKEN = re.compile(r"field is immutable")
_NOT_OF_THE_OBJECT = frozenset({Reason.QUOTA_EXCEEDED, Reason.POD_SECURITY, Reason.ADMISSION_DENIED})


def judge(error: KubeError, manifest: Manifest, pod_template: Mapping[str, object]) -> Refusal:
    """Return the refusal that an error means for the user. `manifest` was refused."""
    kind, meta = str(manifest.get("kind", "")), manifest.get("metadata") or {}
    name, namespace = str(meta.get("name", "")), str(meta.get("namespace", ""))
    where = f"{kind}/{name}"
    said = shorten(user_paths(error.words[: 4 * MAX_WORDS], manifest, pod_template))
    if NAMESPACE_TERMINATING in error.causes:
        return Refusal(where, Reason.NAMESPACE_TERMINATING, messages.namespace_terminating(namespace))
    reason = refusal_reason(error.words)
    if reason in _NOT_OF_THE_OBJECT:
        return Refusal(where, reason, messages.noted(reason, said))
    if _TAKEN.search(error.words):
        return Refusal(where, Reason.NAME_TAKEN, messages.name_taken(kind, name, namespace, said))
    if error.not_found and kind in BACKENDS and _NOT_SERVED.search(error.words):
        return Refusal(f"CustomResource/{kind}", Reason.BACKEND_MISSING, messages.backend_missing(kind, ()))
    is_about_it = error.code in _FINAL or (error.code >= 500 and _TYPED.search(error.words) is not None)
    if is_about_it and kind not in _OWN:
        return Refusal(where, Reason.INVALID_SPEC, messages.template_refused(kind, said), is_final=True)
    return Refusal(where, Reason.API_REFUSED, messages.api_refused(kind or "request", said))


def shorten(text: str) -> str:
    """Return the server's message as one bounded line."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_WORDS else f"{line[: MAX_WORDS - 1]}…"


def is_passing(error: KubeError) -> bool:
    """Return whether an error may be transient; such errors are not reported immediately."""
    return error.code in _PASSING or (error.code >= 500 and _TYPED.search(error.words) is None)


@dataclass(slots=True)
class _Entry:
    version: tuple[str, int]
    """uid and generation of the experiment that was refused."""
    refusal: Refusal
    is_told: bool = True
    due: float = 0.0
    times: int = field(default=0)


class RefusalStore:
    """Refusals of all experiments, by refused object. In memory only: after a restart everything is
    retried.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._entries: dict[Key, dict[str, _Entry]] = {}
        """(namespace, name) of the experiment -> stage, or the empty string for refusals that concern no single
        stage."""

    def of(self, experiment: Experiment) -> dict[str, Refusal]:
        """Return the current refusals, by stage."""
        return {
            stage: entry.refusal if entry.is_told else Refusal("", entry.refusal.reason, entry.refusal.message)
            for stage, entry in self._current(experiment).items()
        }

    def held(self, experiment: Experiment) -> dict[str, Refusal]:
        """Return the refusals whose retry is not due; those that concern no stage are retried at every reconcile."""
        now, entries = self._monotonic(), self._current(experiment)
        return {
            stage: refusal for stage, refusal in self.of(experiment).items() if not stage or entries[stage].due > now
        }

    def due_in_s(self, experiment: Experiment) -> float | None:
        """Return the seconds until the next retry; None without refusals."""
        now = self._monotonic()
        return min((max(0.0, entry.due - now) for entry in self._current(experiment).values()), default=None)

    def record(self, experiment: Experiment, stage: str, error: KubeError, manifest: Manifest) -> Refusal | None:
        """Record a refusal; return it if it differs from the one before."""
        known = self._current(experiment).get(stage)
        template = experiment.spec.pod_template if experiment.spec else {}
        refusal = judge(error, manifest, template)
        times = known.times + 1 if known else 1
        # The plan reports it once discovery has noticed, with the installed alternatives.
        is_gone = refusal.reason is Reason.BACKEND_MISSING
        is_told = not is_gone and (not is_passing(error) or times >= TOLERATED_ERRORS)
        entry = _Entry(_version(experiment), refusal, is_told, times=times)
        is_over = refusal.is_final or refusal.reason is Reason.NAMESPACE_TERMINATING
        pause_s = REST_S if is_over else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(times - 1, 16))
        entry.due = self._monotonic() + max(pause_s, error.retry_after_s or 0.0)
        self._entries.setdefault(_key(experiment), {})[stage] = entry
        is_new = known is None or known.refusal != refusal or known.is_told != is_told
        return refusal if is_new else None

    def hasten(self, experiment: Experiment) -> None:
        """Retry soon, because an object that may have been in the way was deleted."""
        soon = self._monotonic() + FIRST_PAUSE_S
        for entry in self._current(experiment).values():
            if not entry.refusal.is_final:
                entry.due = min(entry.due, soon)

    def clear(self, experiment: Experiment, stage: str) -> bool:
        """Forget a refusal after the object was accepted; return whether there was one."""
        entries = self._entries.get(_key(experiment), {})
        known = entries.pop(stage, None)
        if not entries:
            self._entries.pop(_key(experiment), None)
        return known is not None

    def forget(self, key: Key) -> None:
        """Forget the experiment of that namespace and name."""
        self._entries.pop(key, None)

    def _current(self, experiment: Experiment) -> dict[str, _Entry]:
        """Return the entries of this generation; drop those of an earlier one, or of a deleted namesake."""
        entries = self._entries.get(_key(experiment), {})
        stale = [stage for stage, entry in entries.items() if entry.version != _version(experiment)]
        for stage in stale:
            self.clear(experiment, stage)
        return entries


def _key(experiment: Experiment) -> Key:
    return experiment.namespace, experiment.name


def _version(experiment: Experiment) -> tuple[str, int]:
    return experiment.uid, experiment.generation
