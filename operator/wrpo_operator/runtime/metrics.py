"""Prometheus metrics of the operator and its experiments.

No label holds a name that users choose: kinds of stages, states and reasons are closed sets, so the number of series is
bounded for every workload. `fleet` adds series with names if an administrator enables them.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

QUICK_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LONG_S = (10, 30, 60, 300, 900, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 24 * 3600, 72 * 3600, 168 * 3600)
"""Buckets for stages, which take from seconds (a cached artifact) to days (training)."""


class Metrics:
    """Metrics in a separate registry per instance; nothing is global."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.reconciles = Counter("wrpo_reconciles", "Reconciles by outcome.", ["outcome"], registry=registry)
        self.reconcile_seconds = Histogram(
            "wrpo_reconcile_seconds", "Duration of a reconcile in seconds.", buckets=QUICK_S, registry=registry
        )
        self.queue_depth = Gauge("wrpo_queue_depth", "Experiments waiting for a worker.", registry=registry)
        self.queue_wait = Histogram(
            "wrpo_queue_wait_seconds",
            "Time from a change to its reconcile in seconds.",
            buckets=QUICK_S,
            registry=registry,
        )
        self.leading = Gauge("wrpo_leading", "1 while this process holds the Lease, 0 otherwise.", registry=registry)
        self.watch_events = Counter("wrpo_watch_events", "Watch events received.", ["resource"], registry=registry)
        self.undecodable = Counter(
            "wrpo_undecodable_objects",
            "Received objects and parts of objects that were skipped because they cannot be decoded.",
            ["resource"],
            registry=registry,
        )
        self.watch_age = Gauge(
            "wrpo_watch_age_seconds", "Seconds since the watches were last verified by a list.", registry=registry
        )
        self.watch_restarts = Counter("wrpo_watch_restarts", "Watch sessions started.", registry=registry)
        self.progress_posts = Counter(
            "wrpo_progress_posts", "Progress posts by HTTP status.", ["code"], registry=registry
        )
        self.api_requests = Counter(
            "wrpo_api_requests",
            "Requests to the API server by HTTP status; 0 means no response. Watches are not counted.",
            ["verb", "resource", "code"],
            registry=registry,
        )
        self.api_request_seconds = Histogram(
            "wrpo_api_request_seconds",
            "Response time of the API server in seconds.",
            ["verb", "resource"],
            buckets=QUICK_S,
            registry=registry,
        )
        self.status_writes = Counter(
            "wrpo_status_writes", "Status writes of experiments by outcome.", ["outcome"], registry=registry
        )
        self.stage_seconds = Histogram(
            "wrpo_stage_seconds",
            "Duration of stages in seconds, by kind of stage and outcome: Succeeded, Cached or Failed.",
            ["kind", "outcome"],
            buckets=LONG_S,
            registry=registry,
        )
        self.attempts = Counter(
            "wrpo_attempts",
            "Ended attempts by kind of stage, state, and cause of failure.",
            ["kind", "state", "failure"],
            registry=registry,
        )
        self.gpu_seconds = Counter(
            "wrpo_gpu_seconds", "GPU time of ended attempts in seconds, by kind of stage.", ["kind"], registry=registry
        )
        self.blocked_seconds = Counter(
            "wrpo_blocked_seconds",
            "Time that experiments were blocked in seconds, by reason.",
            ["reason"],
            registry=None,
        )
        """Exported by the FleetCollector, which updates it first."""

    def observe_request(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """Count one request to the API server."""
        self.api_requests.labels(verb, resource, str(code)).inc()
        self.api_request_seconds.labels(verb, resource).observe(seconds)

    def render(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
