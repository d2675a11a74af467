"""What the operator says about itself in Prometheus' form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """One registry per process part that is tested; nothing global."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter("wrpo_reconciles", "Reconciles by outcome.", ["outcome"], registry=self.registry)
        self.reconcile_seconds = Histogram("wrpo_reconcile_seconds", "Duration of a reconcile.", registry=self.registry)
        self.queue_depth = Gauge("wrpo_queue_depth", "Experiments waiting for a worker.", registry=self.registry)
        self.leading = Gauge("wrpo_leading", "1 while this process holds the lease.", registry=self.registry)
        self.watch_events = Counter("wrpo_watch_events", "Watch events received.", ["resource"], registry=self.registry)
        self.watch_age = Gauge(
            "wrpo_watch_age_seconds", "Seconds since the watch was last proven right.", registry=self.registry
        )
        self.watch_restarts = Counter("wrpo_watch_restarts", "Watch sessions started.", registry=self.registry)
        self.progress_posts = Counter(
            "wrpo_progress_posts", "Progress posts by HTTP status.", ["code"], registry=self.registry
        )

    def render(self) -> bytes:
        return generate_latest(self.registry)
