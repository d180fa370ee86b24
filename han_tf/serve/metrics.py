"""What the service counts and measures about itself, for Prometheus."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from han_tf.serve.guards import App, Message, Receive, Send

METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE")
"""Methods that are counted by name; all others count as ``other``."""


class Metrics:
    """The metrics of ``/metrics``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        options = {"registry": self.registry, "namespace": "han_tf"}
        self.requests = Counter("requests", "Requests answered.", ["method", "route", "status"], **options)
        self.refused = Counter("refused", "Requests refused before they reached a route.", ["status"], **options)
        self.seconds = Histogram(
            "request_seconds",
            "Time to answer, without reading the body.",
            ["route"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            **options,
        )
        self.batch = Histogram(
            "batch_size", "Images per pass.", ["network"], buckets=(1, 2, 4, 8, 16, 32, 64), **options
        )
        self.waiting = Gauge("waiting", "What waits in each queue.", ["queue"], **options)
        self.entries = Gauge("gallery_entries", "Images in the gallery.", **options)

    def measured(self, app: App) -> App:
        """Returns ``app`` with its requests counted and timed."""

        async def call(scope: Message, receive: Receive, send: Send) -> None:
            begin, status = time.perf_counter(), 0

            async def watch(message: Message) -> None:
                nonlocal status
                status = message.get("status", status)
                await send(message)

            try:
                await app(scope, receive, watch)
            finally:
                # The route's pattern, not the path, so that clients cannot create any number of labels.
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in METHODS else "other"
                self.requests.labels(method, route, status or "none").inc()
                self.seconds.labels(route).observe(time.perf_counter() - begin)

        return call
