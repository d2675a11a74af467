"""Leader election on one coordination.k8s.io Lease: one operator acts, the others are standbys.

Two rules prevent two leaders. A holder that could not renew within `renew_deadline_s` stops acting. A candidate takes
over only after the same record was unchanged for `duration_s` by its own clock; clocks of two machines are never
compared. `renew_deadline_s` is shorter than `duration_s`. Because requests take time, the holder counts from before its
request of the renewal, the candidate from after it received the record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from wrpo_operator.runtime.kube import KubeClient, KubeError
from wrpo_operator.runtime.resources import LEASES, JsonObject

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """Name and holder of the lease, and its timing."""

    namespace: str
    name: str
    identity: str
    duration_s: float = 15.0
    renew_deadline_s: float = 10.0
    retry_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.retry_s < self.renew_deadline_s < self.duration_s:
            raise ValueError(
                f"lease: retry {self.retry_s:g} s < renew deadline {self.renew_deadline_s:g} s < "
                f"duration {self.duration_s:g} s must hold"
            )


class LeaderElection:
    """Acquires and renews the Lease. Every write checks `is_leader` first."""

    def __init__(
        self,
        client: KubeClient,
        settings: LeaseSettings,
        *,
        monotonic: Callable[[], float],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_change: Callable[[bool], None] = lambda _leading: None,
    ) -> None:
        self._client = client
        self._settings = settings
        self._monotonic = monotonic
        self._now = now
        self._on_change = on_change
        self._leading = False
        self._renewed_at = float("-inf")
        self._observed: tuple[str, float] = ("", float("-inf"))
        self.last_contact = monotonic()
        """Time at which the lease was last read or written, by any holder."""
        self.holder = ""
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why the last request for the lease failed; empty if it did not."""
        return self._problem

    @property
    def is_leader(self) -> bool:
        """Whether this process may act now, even if the renewal loop is late."""
        return self._leading and self._is_fresh()

    def _is_fresh(self) -> bool:
        return self._monotonic() - self._renewed_at < self._settings.renew_deadline_s

    async def run(self) -> None:
        """Acquire and renew until cancelled; then release."""
        try:
            while True:
                await self.step()
                await asyncio.sleep(self._settings.retry_s)
        finally:
            await self._release()

    async def step(self) -> None:
        """Try once to acquire or renew."""
        at, limit_s = self._monotonic(), self._settings.renew_deadline_s
        held, problem, is_expected = False, "", False
        try:
            async with asyncio.timeout(limit_s):
                held = await self._try_acquire(at)
        except KubeError as error:
            problem, is_expected = error.message, error.conflict
        except TimeoutError:
            problem = f"no response within {limit_s:g} s"
        if problem and not is_expected and problem != self._problem:
            log.warning("lease %s cannot be renewed: %s", self._settings.name, problem)
        self._problem = problem
        if held:
            self._renewed_at = at
        self._set_leading((held or self._leading) and self._is_fresh())

    async def _try_acquire(self, at: float) -> bool:
        """Acquire or renew if the Lease is held by this process, free, or was unchanged for its duration `at` the
        start.
        """
        settings = self._settings
        try:
            lease = await self._client.get(LEASES, settings.name, settings.namespace)
        except KubeError as error:
            if not error.not_found:
                raise
            await self._client.create(LEASES, self._record(None))
            self.last_contact, self.holder = at, settings.identity
            return True
        self.last_contact = at
        spec = lease.get("spec") or {}
        self.holder = str(spec.get("holderIdentity") or "")
        record = f"{self.holder}/{spec.get('renewTime')}/{lease['metadata'].get('resourceVersion')}"
        if record != self._observed[0]:
            self._observed = (record, self._monotonic())
        free = not self.holder or self.holder == settings.identity
        expired = at - self._observed[1] >= float(spec.get("leaseDurationSeconds") or settings.duration_s)
        if not (free or expired):
            return False
        await self._client.replace(LEASES, self._record(lease))
        self.holder = settings.identity
        return True

    def _record(self, lease: JsonObject | None) -> JsonObject:
        settings = self._settings
        stamp = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict((lease or {}).get("spec") or {})
        if spec.get("holderIdentity") != settings.identity:
            spec["acquireTime"] = stamp
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (1 if lease else 0)
        spec.update(
            holderIdentity=settings.identity, renewTime=stamp, leaseDurationSeconds=max(1, round(settings.duration_s))
        )
        metadata = dict((lease or {}).get("metadata") or {"name": settings.name, "namespace": settings.namespace})
        return {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}

    async def _release(self) -> None:
        """Release the Lease, so that a successor does not wait for its expiry. Best effort."""
        if not self._leading:
            return
        self._set_leading(False)
        settings = self._settings
        try:
            async with asyncio.timeout(3):
                lease = await self._client.get(LEASES, settings.name, settings.namespace)
                if (lease.get("spec") or {}).get("holderIdentity") == settings.identity:
                    lease["spec"]["holderIdentity"] = ""
                    await self._client.replace(LEASES, lease)
        except (KubeError, TimeoutError) as error:
            log.info("lease %s was not released: %s", settings.name, error)

    def _set_leading(self, leading: bool) -> None:
        if leading == self._leading:
            return
        self._leading = leading
        log.info("lease %s: %s", self._settings.name, "leading" if leading else "standby")
        self._on_change(leading)
