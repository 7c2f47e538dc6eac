"""What the routes of the policy server work with: its settings, snapshots, decoding thread, callers and detector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from db.session import make_engine
from orchestrator.http_shared.metrics import Metrics
from orchestrator.serving.callers import Callers
from orchestrator.serving.decoding import DecodeThread
from orchestrator.serving.far_requests import DetectorConfig, FarRequests
from orchestrator.serving.reply_metrics import ReplyMetrics
from orchestrator.serving.snapshots import SnapshotLimits, Snapshots
from orchestrator.store.artifacts import ArtifactStore


@dataclass(frozen=True)
class PolicyServerConfig:
    """Where the policy server's database and artifacts are, and its limits."""

    database_url: str
    artifact_url: str
    cache: Path
    limits: SnapshotLimits
    admin_token: str | None = None
    """Without it the admin calls are closed."""
    require_keys: bool = False
    """Whether /v1 asks for an API key; else everybody who reaches the server may use it."""
    requests_per_minute: int = 600
    """Of each API key that has no limit of its own."""
    detector: DetectorConfig | None = None
    """The detector that judges each request, and what becomes of those far from home."""
    max_tokens: int = 4096
    """Longest reply that a request may ask for."""
    max_replies: int = 1024
    """Replies that run or wait; beyond it requests are refused for the moment."""
    request_timeout_s: float = 300.0
    max_body_bytes: int = 1_000_000


class PolicyServer:
    """What the routes work with: the snapshots and the decoding thread."""

    def __init__(self, config: PolicyServerConfig) -> None:
        self.config = config
        self.decoding = DecodeThread()
        self.database = make_engine(config.database_url)
        store = ArtifactStore(config.artifact_url, config.cache)
        self.snapshots = Snapshots(self.database, store, config.limits)
        detector = config.detector
        self.detector = None if detector is None else FarRequests(detector, self.database, store, config.limits.device)
        self.callers = Callers(self.database, config.admin_token, config.requests_per_minute)
        self.replies = 0
        self.metrics = Metrics("policy_server")
        self.measured = ReplyMetrics(self.metrics.registry, self.snapshots.standing)
