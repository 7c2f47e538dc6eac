"""`orchestrator serve-policy`: run the policy server."""

from __future__ import annotations

import argparse
import ipaddress
import os
from typing import get_args

from models.runtime.training_choices import Precision
from orchestrator.errors import ConfigError
from orchestrator.http_shared.addresses import port_number
from orchestrator.settings import DetectorAction, Settings, secret

DEFAULT_PORT = 8001


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=port_number, default=DEFAULT_PORT, help="0 takes a free one and prints it")
    parser.add_argument(
        "--keys",
        choices=("required", "open"),
        help="whether programs need an API key (default: required, unless the server listens to this machine only)",
    )
    parser.add_argument("--per-minute", type=int, default=600, help="requests a minute of a key without a limit")
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="URL",
        help="an OpenAI-compatible engine (vLLM and the like) that decodes in place of the built-in one, as "
        "http://host:8000/v1; may be given several times. Its key, if any: ORCHESTRATOR_ENGINE_KEY",
    )
    parser.add_argument(
        "--detector",
        metavar="DIGEST",
        help="detector (artifact of kind ood_detector) of far requests (default: ORCHESTRATOR_DETECTOR, else none)",
    )
    parser.add_argument(
        "--detector-action",
        choices=get_args(DetectorAction),
        help="what becomes of a request far from what the policy was trained to answer "
        "(default: ORCHESTRATOR_DETECTOR_ACTION, else log)",
    )
    for old, new in (("--gate", "--detector"), ("--gate-action", "--detector-action")):
        parser.add_argument(old, action=_Renamed, const=new, help=argparse.SUPPRESS)
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="what replies are computed in; that of [evaluation] shows raters what was judged "
        "(default: ORCHESTRATOR_SERVING_PRECISION, else float32)",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the decoder")
    parser.add_argument("--max-slots", type=int, default=64, help="replies decoded at the same time, per snapshot")
    parser.add_argument("--max-context", type=int, help="prompt and reply tokens (default: what the policy holds)")
    parser.add_argument("--max-snapshots", type=int, default=8, help="snapshots in memory at the same time")
    parser.add_argument("--idle", type=float, default=30.0, metavar="SECONDS", help="how long unneeded ones stay")


class _Renamed(argparse.Action):
    """An option under the name that it had before: refused, with the name that it has now."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(f"{self.option_strings[0]} is now called {self.const}; give that instead.")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    if args.per_minute < 1:
        raise ConfigError(f"--per-minute is {args.per_minute}; expected at least 1.")
    settings = Settings.from_env()
    database_url = settings.require_database_url()
    detector = args.detector or settings.detector
    if detector is not None:
        _check_detector(database_url, detector, "--detector" if args.detector else "ORCHESTRATOR_DETECTOR")
    # Set before transformers is imported: a policy comes from the artifact store and never from a hub.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from models.backbone.precision import multiplying_in, note_precision
    from orchestrator.http_shared.asgi import serve
    from orchestrator.serving.app import create_app
    from orchestrator.serving.far_requests import DetectorConfig
    from orchestrator.serving.server import PolicyServerConfig
    from orchestrator.serving.snapshots import SnapshotLimits

    torch.set_num_threads(args.threads)
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    precision: Precision = args.precision or settings.serving_precision
    note_precision(precision, name)
    config = PolicyServerConfig(
        database_url=database_url,
        artifact_url=settings.artifact_url,
        cache=settings.home / "cache",
        limits=SnapshotLimits(
            torch.device(name),
            args.max_slots,
            args.max_context,
            args.max_snapshots,
            args.idle,
            tuple(args.engine),
            secret("ORCHESTRATOR_ENGINE_KEY"),
            precision=precision,
        ),
        admin_token=settings.admin_token,
        require_keys=args.keys == "required" or (args.keys is None and not is_loopback(args.host)),
        requests_per_minute=args.per_minute,
        detector=None
        if detector is None
        else DetectorConfig(detector, args.detector_action or settings.detector_action),
    )
    with multiplying_in(precision, name):
        serve(create_app(config), args.host, args.port, "policy server")
    return 0


def _check_detector(database_url: str, name: str, setting: str) -> None:
    """Refuse a name that no detector has, rather than every request.

    Raises:
        ConfigError: the digest begins no detector, or several.
    """
    from db.session import session
    from orchestrator.store.deployments import digests_of

    with session(database_url) as database:
        found = digests_of(database, "sha256:" + name.removeprefix("sha256:"), ("ood_detector",))
    if len(found) != 1:
        raise ConfigError(
            f"{setting} {name} is the beginning of {len(found)} detectors' digests; expected one. "
            "`orchestrator ood list` shows those there are."
        )
