"""Prometheus metrics of both services: how many requests of which route, how they ended, how long they took.

Labels are routes and statuses only: nothing that tells who asked or what.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# From a query of the database to a long reply on a slow machine.
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one application, in a registry of its own, so that two in one process do not meet."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.registry = CollectorRegistry()
        self.requests = Counter(
            f"{service}_requests", "Requests by route and status", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            f"{service}_request_seconds",
            "Time to the first byte of the answer, by route",
            ["route"],
            buckets=BUCKETS_S,
            registry=self.registry,
        )

    def watch(
        self,
        *,
        gauges: Mapping[str, tuple[str, Callable[[], float]]],
        counters: Mapping[str, tuple[str, Callable[[], float]]],
    ) -> None:
        """Add numbers that are read when somebody asks: name, meaning, and how to read it."""
        self.registry.register(_Watched(self.service, gauges, counters))

    def answer(self) -> Response:
        """Everything in Prometheus' text format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


class _Watched(Collector):
    def __init__(
        self,
        service: str,
        gauges: Mapping[str, tuple[str, Callable[[], float]]],
        counters: Mapping[str, tuple[str, Callable[[], float]]],
    ) -> None:
        self._service, self._gauges, self._counters = service, gauges, counters

    def collect(self) -> Iterable[Metric]:
        """The numbers as they stand."""
        for name, (meaning, read) in self._gauges.items():
            yield GaugeMetricFamily(f"{self._service}_{name}", meaning, value=read())
        for name, (meaning, read) in self._counters.items():
            yield CounterMetricFamily(f"{self._service}_{name}", meaning, value=read())


class CountRequests:
    """Middleware: counts and times every request under its route as it is written in the code."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and note how it was answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Paths that are no route are one label, or anybody could make as many as they like.
                route = getattr(scope.get("route"), "path", "none")
                self.metrics.requests.labels(scope["method"], route, message["status"]).inc()
                self.metrics.seconds.labels(route).observe(time.perf_counter() - began)
            await send(message)

        await self.app(scope, receive, watched)
