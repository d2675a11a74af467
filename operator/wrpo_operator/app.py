"""Operator process: construction and supervision of client, informer, queue, lease and endpoints.

This module decides nothing about experiments. If a part ends, the process exits with an error and its Deployment
restarts it, because running without that part would be worse.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from aiohttp import web

from wrpo_operator.api import names
from wrpo_operator.plan.classify import LIVE
from wrpo_operator.runtime.accelerators import Accelerators
from wrpo_operator.runtime.changes import Changes
from wrpo_operator.runtime.cluster import Cluster
from wrpo_operator.runtime.fleet import FleetCollector
from wrpo_operator.runtime.health import contact, health_app, heartbeat
from wrpo_operator.runtime.holding import MOMENT_S
from wrpo_operator.runtime.host import Host
from wrpo_operator.runtime.informer import Informer, InformerListener, InformerSettings
from wrpo_operator.runtime.kube import HttpKube, KubeError
from wrpo_operator.runtime.lease import LeaderElection, LeaseSettings
from wrpo_operator.runtime.metering import count_status_write
from wrpo_operator.runtime.metrics import Metrics
from wrpo_operator.runtime.observe import child_fact
from wrpo_operator.runtime.progress_server import MIN_INTERVAL_S, ProgressHost, ProgressServer, ProgressStore
from wrpo_operator.runtime.queue import ReconcileQueue
from wrpo_operator.runtime.reconciler import Reconciler, ReconcilerHost, ReconcilerSettings
from wrpo_operator.runtime.resources import (
    CHILD_RESOURCES,
    EXPERIMENTS,
    SWEEPS,
    JsonObject,
    Resource,
    labels_of,
    name_of,
    namespace_of,
)
from wrpo_operator.runtime.settings import Settings
from wrpo_operator.runtime.snapshot import SnapshotBuilder
from wrpo_operator.runtime.store import Key, ObjectStore
from wrpo_operator.runtime.sweeps import SweepReconciler
from wrpo_operator.runtime.tls import ServerCertificate
from wrpo_operator.runtime.watching import WatchSettings

log = logging.getLogger(__name__)
WATCH_LIMIT_S = 300.0
LEASE_LIMIT_S = 120.0
WORK_LIMIT_S = 300.0
SWEEP_WORKERS = 2
SWEEP_MOMENT_S = 0.5
"""Delay of a sweep's reconcile after a change of one of its experiments, because many change together."""
CONTACT_LIMIT_S = 20.0
"""The Lease is read every two seconds; this tolerates a single lost response."""


class Operator:
    """One running operator."""

    def __init__(self, connection: HttpKube, settings: Settings) -> None:
        self._connection = connection
        self._settings = settings
        self._stop = asyncio.Event()
        self._metrics = Metrics()
        self._store = ObjectStore()
        self._cluster = Cluster(
            client=connection, store=self._store, now=lambda: datetime.now(UTC), monotonic=time.monotonic
        )
        self._changes = Changes(self._store)
        connection.on_request = self._metrics.observe_request
        self._certificate = (
            ServerCertificate(Path(settings.progress_cert_file), Path(settings.progress_key_file))
            if settings.progress_cert_file
            else None
        )
        self._added_at: dict[Key, float] = {}
        self._progress_store = ProgressStore()
        self._progress_at: dict[Key, float] = {}
        self._informer = Informer(
            self._cluster,
            InformerSettings(audit_s=settings.audit_seconds),
            WatchSettings(
                namespace=settings.namespace or None,
                login=connection.kopf_login,
                on_cut=lambda resource: self._metrics.undecodable.labels(resource).inc(),
                restore_signals=self._handle_signals,
            ),
            InformerListener(on_change=self._on_change, on_session=self._on_session, on_trusted=self._wake),
        )
        self._lease = LeaderElection(
            connection,
            LeaseSettings(settings.own_namespace, settings.lease_name, settings.identity),
            monotonic=time.monotonic,
            on_change=self._on_leading,
        )
        self._snapshots = SnapshotBuilder(
            self._store,
            self._progress_store,
            backends=lambda: self._informer.training_backends,
            policy=settings.pod_template_policy,
        )
        self._accelerators = Accelerators(
            connection,
            settings.accelerator_settings,
            monotonic=time.monotonic,
            wake=self._add_after,
        )
        self._reconciler = Reconciler(
            self._cluster,
            self._snapshots,
            ReconcilerSettings(settings.render, settings.identity, settings.manage_service_account, moment_s=MOMENT_S),
            ReconcilerHost(
                may_act=self._may_act,
                forget=self._forget,
                wake=self._add,
                on_status=partial(count_status_write, self._metrics),
                on_written=self._wake_sweep,
                accelerators=self._accelerators.of,
            ),
        )
        self._queue: ReconcileQueue[Key] = ReconcileQueue(self._work, on_error=self._on_error)
        self._sweeps = SweepReconciler(
            self._cluster,
            Host(may_act=self._may_act, forget=self._forget_sweep, wake=self._add),
            identity=settings.identity,
            policy=settings.pod_template_policy,
        )
        self._sweep_queue: ReconcileQueue[Key] = ReconcileQueue(self._sweeps.reconcile, on_error=self._on_error)
        self._metrics.registry.register(
            FleetCollector(
                self._metrics,
                lambda: self._store.items(EXPERIMENTS),
                leading=lambda: self._lease.is_leader,
                now=self._cluster.now,
                per_experiment=settings.metrics_per_experiment,
            )
        )

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT."""
        self._handle_signals()
        runners = [await self._serve(self._health(), self._settings.health_port, "health")]
        if self._settings.progress_port:
            tls = self._certificate.context if self._certificate else None
            runners.append(await self._serve(self._progress().app(), self._settings.progress_port, "progress", tls))
        try:
            await self._until_stopped()
        finally:
            for runner in runners:
                await runner.cleanup()
            await self._connection.close()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    async def _until_stopped(self) -> None:
        parts = {
            asyncio.create_task(self._informer.run(), name="informer"),
            asyncio.create_task(self._queue.run(self._settings.workers), name="queue"),
            asyncio.create_task(self._sweep_queue.run(SWEEP_WORKERS), name="sweep-queue"),
            asyncio.create_task(self._lease.run(), name="lease"),
            asyncio.create_task(self._resync(), name="resync"),
            asyncio.create_task(self._accelerators.run(), name="accelerators"),
        }
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            done, _ = await asyncio.wait(parts | {stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts | {stopping}:
                part.cancel()
            await asyncio.gather(*parts, stopping, return_exceptions=True)
        for part in done - {stopping}:
            part.result()
            raise RuntimeError(f"part {part.get_name()} of the operator ended unexpectedly")
        log.info("stopped")

    def _may_act(self) -> bool:
        return self._lease.is_leader and self._informer.synced

    async def _work(self, key: Key) -> float | None:
        self._metrics.queue_depth.set(self._queue.depth)
        added_at = self._added_at.pop(key, None)
        if added_at is not None:
            self._metrics.queue_wait.observe(time.monotonic() - added_at)
        with self._metrics.reconcile_seconds.time():
            delay_s = await self._reconciler.reconcile(key)
        self._metrics.reconciles.labels("done").inc()
        return delay_s

    def _on_error(self, key: Key, error: Exception, pause: float) -> None:
        self._metrics.reconciles.labels("error").inc()
        cause = error.__cause__ if isinstance(error.__cause__, KubeError) else error
        name = "/".join(key)
        if isinstance(cause, KubeError):
            log.warning("%s: %s; retrying in %.1f s", name, cause.message, pause, extra={"experiment": name})
        else:
            log.error(
                "%s: reconcile failed; retrying in %.1f s", name, pause, exc_info=error, extra={"experiment": name}
            )

    def _on_change(self, resource: Resource, obj: JsonObject) -> None:
        self._metrics.watch_events.labels(resource.plural).inc()
        namespace = namespace_of(obj)
        if resource == EXPERIMENTS:
            self._add((namespace, name_of(obj)))
            self._wake_sweep(obj)
            return
        if resource == SWEEPS:
            self._sweep_queue.add((namespace, name_of(obj)))
            return
        experiment, urgency_s = labels_of(obj).get(names.LABEL_EXPERIMENT, ""), self._changes.urgency_s(resource, obj)
        if urgency_s is None:
            return
        if experiment and urgency_s > 0:
            self._queue.add_after((namespace, experiment), urgency_s)
        elif experiment:
            self._add((namespace, experiment))
        if resource.kind in CHILD_RESOURCES and self._frees_an_artifact(resource, obj):
            for key in self._snapshots.waiters(obj):
                self._add(key)

    def _frees_an_artifact(self, resource: Resource, obj: JsonObject) -> bool:
        """Return whether a child is no longer live, which unblocks experiments that wait for its artifact."""
        fact = child_fact(obj, ())
        gone = self._store.get(resource, namespace_of(obj), name_of(obj)) is None
        return gone or (fact is not None and fact.state not in LIVE)

    def _wake(self) -> None:
        """Enqueue every experiment and every sweep."""
        for key in self._store.keys(EXPERIMENTS):
            self._add(key)
        for key in self._store.keys(SWEEPS):
            self._sweep_queue.add(key)

    def _wake_sweep(self, experiment: JsonObject) -> None:
        """Enqueue the sweep of an experiment, if it has one, soon."""
        sweep = labels_of(experiment).get(names.LABEL_SWEEP)
        if sweep:
            self._sweep_queue.add_after((namespace_of(experiment), sweep), SWEEP_MOMENT_S)

    def _oldest_running_s(self) -> float:
        return max(self._queue.oldest_running_s(), self._sweep_queue.oldest_running_s())

    def _add(self, key: Key) -> None:
        self._added_at.setdefault(key, time.monotonic())
        self._queue.add(key)

    def _add_after(self, key: Key, delay_s: float) -> None:
        self._queue.add_after(key, delay_s)

    def _on_session(self) -> None:
        self._metrics.watch_restarts.inc()
        self._changes.prune()
        self._wake()

    def _on_leading(self, leading: bool) -> None:
        self._metrics.leading.set(1 if leading else 0)
        if leading:
            self._informer.invalidate()
            self._wake()

    def _on_progress(self, namespace: str, experiment: str) -> None:
        """Enqueue soon, but limit status writes because of progress to the rate limit of one pod's posts."""
        key, at = (namespace, experiment), time.monotonic()
        due = max(at, self._progress_at.get(key, 0.0) + MIN_INTERVAL_S)
        self._progress_at[key] = due
        self._queue.add_after(key, due - at)

    def _forget(self, key: Key) -> None:
        self._queue.forget(key)
        self._accelerators.forget(key)
        self._progress_store.forget(*key)
        self._progress_at.pop(key, None)
        self._added_at.pop(key, None)

    def _forget_sweep(self, key: Key) -> None:
        self._sweep_queue.forget(key)

    async def _resync(self) -> None:
        """Enqueue every experiment and sweep within `resync_seconds`, spread over time to not delay urgent ones."""
        period_s = self._settings.resync_seconds / 2
        while True:
            await asyncio.sleep(period_s)
            keys = self._store.keys(EXPERIMENTS)
            for number, key in enumerate(keys):
                self._queue.add_after(key, period_s * number / len(keys))
            for key in self._store.keys(SWEEPS):
                self._sweep_queue.add_after(key, period_s)
            self._renew_certificate()

    def _renew_certificate(self) -> None:
        try:
            if self._certificate is not None and self._certificate.reload():
                log.info("reloaded the certificate of the progress endpoint")
        except (OSError, ssl.SSLError) as error:
            log.warning("the progress endpoint keeps its certificate because the new one cannot be used: %s", error)

    def _progress(self) -> ProgressServer:
        host = ProgressHost(
            on_post=self._on_progress,
            leading=lambda: self._lease.is_leader,
            on_answer=lambda code: self._metrics.progress_posts.labels(str(code)).inc(),
        )
        return ProgressServer(self._cluster, self._progress_store, self._settings.render.progress_audience, host)

    def _health(self) -> web.Application:
        def watch_age() -> float:
            return time.monotonic() - self._informer.proven_at

        def lease_age() -> float:
            return time.monotonic() - self._lease.last_contact

        def render_metrics() -> bytes:
            self._metrics.queue_depth.set(self._queue.depth)
            self._metrics.watch_age.set(watch_age())
            return self._metrics.render()

        live = {
            "watch": heartbeat("watches", watch_age, WATCH_LIMIT_S),
            "reconcile": heartbeat("a reconcile runs", self._oldest_running_s, WORK_LIMIT_S),
            "lease": heartbeat("lease", lease_age, LEASE_LIMIT_S),
        }
        ready = {
            "watch": lambda: self._informer.problem,
            "api": contact("the API server", lease_age, CONTACT_LIMIT_S, lambda: self._lease.problem),
        }
        return health_app(live=live, ready=ready, metrics=render_metrics)

    async def _serve(
        self, app: web.Application, port: int, what: str, tls: ssl.SSLContext | None = None
    ) -> web.AppRunner:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, self._settings.bind, port, ssl_context=tls).start()
        log.info("%s endpoint on %s:%d", what, self._settings.bind, port)
        return runner


async def run(settings: Settings) -> None:
    """Run one operator until SIGTERM or SIGINT."""
    client = await HttpKube.connect(settings.kubeconfig, settings.context)
    log.info(
        "wrpo-operator: API server %s, namespace %s, identity %s",
        client.server,
        settings.namespace or "(all)",
        settings.identity,
    )
    await Operator(client, settings).run()
