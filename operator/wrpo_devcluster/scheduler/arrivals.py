"""Order in which the watch reports new pods, which is that of the queue of kube-scheduler."""

from __future__ import annotations

from itertools import count

from wrpo_devcluster.client import WatchEvent
from wrpo_devcluster.objects import is_terminal


class Arrivals:
    """Places of the pods without a node. Times of creation are whole seconds and do not order pods within one."""

    def __init__(self) -> None:
        self._next = count()
        self._places: dict[str, int] = {}
        """uid -> place"""

    def heard(self, event: WatchEvent) -> None:
        """Note a change of a pod."""
        pod, uid = event.object, event.object["metadata"]["uid"]
        if event.type == "DELETED" or pod["spec"].get("nodeName") or is_terminal(pod):
            self._places.pop(uid, None)
        elif uid not in self._places:
            self._places[uid] = next(self._next)

    def place(self, uid: str) -> float:
        """Return the place of a pod in the order; a pod that the watch has not reported yet comes last."""
        return self._places.get(uid, float("inf"))
