"""`orchestrator serve-feedback`: run the feedback app."""

from __future__ import annotations

import argparse

from orchestrator.errors import ConfigError
from orchestrator.http_shared.addresses import port_number
from orchestrator.settings import Settings

DEFAULT_PORT = 8080


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=port_number, default=DEFAULT_PORT, help="0 takes a free one and prints it")
    parser.add_argument("--per-minute", type=int, default=3000, help="requests a minute of each rater")
    parser.add_argument("--threads", type=int, default=12, help="requests that use the database at the same time")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    settings = Settings.from_env()
    if settings.policy_url is None:
        raise ConfigError("ORCHESTRATOR_POLICY_URL is not set; give the address of the policy server.")
    for name in ("threads", "per_minute"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(args, name)}; expected at least 1.")
    # FastAPI takes a quarter of a second to import; --help need not wait for it.
    from orchestrator.http_shared.asgi import serve
    from orchestrator.instance.prefect_api import api_url_if_any
    from orchestrator.serving.keys import service_key
    from orchestrator.web.app import FeedbackConfig, create_app

    config = FeedbackConfig(
        settings.require_database_url(),
        settings.policy_url,
        threads=args.threads,
        requests_per_minute=args.per_minute,
        admin_token=settings.admin_token,
        artifact_url=settings.artifact_url,
        cache=settings.home / "cache",
        prefect_api_url=api_url_if_any(settings.home),
        feedback_url=settings.feedback_url,
        policy_key=None if settings.admin_token is None else service_key(settings.admin_token),
    )
    serve(create_app(config), args.host, args.port, "feedback app")
    return 0
