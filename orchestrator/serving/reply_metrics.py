"""What each snapshot's replies are like while it serves, for Prometheus: nothing here needs anybody's comparison.

By these an alert can hold the live policy against the one before it: failures, refusals, length, latency.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from models.chat.format import ChatFormat
from models.statistics.reply_signals import refuses
from orchestrator.serving.decoding import Reply
from orchestrator.serving.engines import OutsideReply

Standing = Callable[[], Mapping[str, str]]
"""Digests of the snapshots that are live (`live`) and that were before it (`before`), by that word."""
BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


def short(digest: str) -> str:
    """How a snapshot is called in labels: the first twelve digits."""
    return digest.removeprefix("sha256:")[:12]


class ReplyMetrics:
    """Counts of replies by the snapshot that wrote them."""

    def __init__(self, registry: CollectorRegistry, standing: Standing) -> None:
        self.replies = Counter(
            "policy_server_snapshot_replies",
            "Replies that ended, by how: stop, length or failed",
            ["snapshot", "how"],
            registry=registry,
        )
        self.refusals = Counter(
            "policy_server_snapshot_refusals",
            "Replies that begin with a phrase of refusal",
            ["snapshot"],
            registry=registry,
        )
        self.tokens = Summary(
            "policy_server_snapshot_reply_tokens", "Length of replies", ["snapshot"], registry=registry
        )
        self.seconds = Histogram(
            "policy_server_snapshot_reply_seconds",
            "From the start of decoding to the end of all replies of a request",
            ["snapshot"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        registry.register(_Standing(standing))

    def ended(self, digest: str, chat: ChatFormat, replies: Sequence[Reply | OutsideReply], started_s: float) -> None:
        """Count the replies of a request that was answered or failed; one that was given up tells nothing."""
        name = short(digest)
        for reply in replies:
            if reply.failure is not None:
                self.replies.labels(name, "failed").inc()
            elif reply.finished is not None:
                self.replies.labels(name, reply.finished).inc()
                self.tokens.labels(name).observe(reply.num_tokens(chat))
                if refuses(reply.text(chat)):
                    self.refusals.labels(name).inc()
        if all(reply.finished is not None for reply in replies):
            self.seconds.labels(name).observe(time.monotonic() - started_s)


class _Standing(Collector):
    def __init__(self, standing: Standing) -> None:
        self._standing = standing

    def collect(self) -> Iterable[Metric]:
        """1 for the live snapshot, and for the one before it."""
        family = GaugeMetricFamily(
            "policy_server_standing",
            "1 for what is live, and for what was live before it",
            labels=["snapshot", "standing"],
        )
        for standing, digest in self._standing().items():
            family.add_metric([short(digest), standing], 1.0)
        yield family
