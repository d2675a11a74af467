"""Running sums of the requests of the pods bound to each node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal

from wrpo_devcluster.client import JsonObject, WatchEvent
from wrpo_devcluster.objects import is_terminal
from wrpo_devcluster.scheduler.fit import Amounts, requests_of, total

_NOTHING: Mapping[str, Decimal] = {}


class Ledger:
    """Ledger fed by a watch of pods and by the scheduler's bindings, which the watch reports only later.

    A broken watch may have missed a deletion. The ledger then holds too much, never too little:
    count again before a pod is reported as unschedulable.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, Amounts]] = {}
        """uid -> (node, requests)"""
        self._used: dict[str, Amounts] = {}

    def used(self, node: str) -> Mapping[str, Decimal]:
        """Return what the pods of a node request."""
        return self._used.get(node, _NOTHING)

    def count(self, pods: Iterable[JsonObject]) -> None:
        """Recount from all existing pods."""
        self._held.clear()
        self._used.clear()
        for pod in pods:
            self._note(pod)

    def heard(self, event: WatchEvent) -> None:
        """Note a change of a pod."""
        if event.type == "DELETED":
            self._remove(event.object["metadata"]["uid"])
        else:
            self._note(event.object)

    def add(self, pod: JsonObject, node: str) -> None:
        """Add a pod that is bound to the node."""
        uid = pod["metadata"]["uid"]
        if uid in self._held:
            return
        wanted = requests_of(pod)
        self._held[uid] = (node, wanted)
        self._used[node] = total((self._used.get(node, {}), wanted))

    def _note(self, pod: JsonObject) -> None:
        if is_terminal(pod):
            self._remove(pod["metadata"]["uid"])
        elif pod["spec"].get("nodeName"):
            # A pod without a node may be a state from before its binding. Bindings are final: nothing to undo.
            self.add(pod, pod["spec"]["nodeName"])

    def _remove(self, uid: str) -> None:
        node, wanted = self._held.pop(uid, ("", {}))
        if node:
            self._used[node] = total((self._used[node], {name: -amount for name, amount in wanted.items()}))
