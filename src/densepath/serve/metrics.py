"""Counters of a server for Prometheus, and the middleware that counts requests."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from densepath.serve.engine import ScoringEngine

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one application; each has a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("densepath_requests", "Requests answered.", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "densepath_request_seconds",
            "From a request's head to the end of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "densepath_batch_seconds", "Time to score a batch.", buckets=_SECONDS, registry=registry
        )
        self.batch_items = Histogram("densepath_batch_items", "Items of a batch.", buckets=_ITEMS, registry=registry)
        self.batch_tokens = Histogram(
            "densepath_batch_tokens", "Tokens of a batch.", buckets=_TOKENS, registry=registry
        )
        self.accepted = Gauge("densepath_queue_requests", "Requests accepted and not answered yet.", registry=registry)
        self.queued = Gauge(
            "densepath_queue_tokens", "Tokens of accepted requests that are not scored yet.", registry=registry
        )

    def watch(self, engine: ScoringEngine) -> None:
        """Show the queue of an engine."""
        self.accepted.set_function(lambda: engine.accepted)
        self.queued.set_function(lambda: engine.queued_tokens)

    def batch(self, items: int, tokens: int, seconds: float) -> None:
        """A batch was scored."""
        self.batches.observe(seconds)
        self.batch_items.observe(items)
        self.batch_tokens.observe(tokens)


class CountRequests:
    """ASGI middleware: status and time of every request, under the path's name in the routes (not as sent)."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500
        started = time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)
