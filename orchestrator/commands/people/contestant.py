"""`orchestrator contestant`: who can answer raters beside plain policies."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict

import httpx

from db.session import session
from orchestrator.commands.printing import print_table
from orchestrator.conversations import contestants
from orchestrator.conversations.contestants import Contestant
from orchestrator.conversations.pairs import Sampling, sampling_now
from orchestrator.errors import ConfigError
from orchestrator.http_shared.proxies import proxy_for, tls
from orchestrator.settings import Settings, secret
from orchestrator.web.outside_models import OutsideModels, ToldStanding


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    best = actions.add_parser("best-of", help="the best of k replies of a policy, chosen by a preference model")
    best.add_argument("name")
    best.add_argument("--policy", required=True, metavar="DIGEST")
    best.add_argument("--preference-model", required=True, metavar="DIGEST")
    best.add_argument("--k", type=int, default=16, help=f"replies to choose from, 2 to {contestants.MAX_K}")
    endpoint = actions.add_parser("endpoint", help="an outside OpenAI-compatible model")
    endpoint.add_argument("name")
    endpoint.add_argument("--url", required=True, help="base of its API, as https://host/v1")
    endpoint.add_argument("--model", required=True, help="the name by which it is asked for")
    endpoint.add_argument(
        "--key-variable", metavar="NAME", help="environment variable of the feedback app that holds the API key"
    )
    writer = actions.add_parser("writer", help="people of a group, who write replies")
    writer.add_argument("name")
    writer.add_argument("--group", required=True)
    listing = actions.add_parser("list", help="every contestant")
    for action in (best, endpoint, writer, listing):
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    settings = Settings.from_env()
    with session(settings.require_database_url()) as database:
        sampling = sampling_now(database)
        if args.action == "list":
            found = contestants.contestants(database)
        elif args.action == "best-of":
            found = [contestants.add_best_of(database, args.name, args.policy, args.preference_model, args.k)]
        elif args.action == "endpoint":
            found = [contestants.add_endpoint(database, args.name, args.url, args.model, args.key_variable)]
        else:
            found = [contestants.add_writer(database, args.name, args.group)]
    if args.action == "endpoint":
        print(f"{args.name}: {asyncio.run(_after_one_question(found[0], sampling))}.", file=sys.stderr)
    states = _states(settings) if args.action == "list" else {}
    if args.json:
        told = {name: asdict(state) for name, state in states.items()}
        print(json.dumps([asdict(one) | {"state": told.get(one.name)} for one in found], indent=2))
        return 0
    rows = [
        {
            "name": one.name if one.kind != "policy" else one.name[:19],
            "kind": one.kind,
            "policy": one.digest[:19] if one.digest else None,
            "k": one.k,
            "preference_model": one.preference_model[:19] if one.preference_model else None,
            "url": one.url,
            "model": one.model,
            **({"state": _in_words(one, states)} if args.action == "list" else {}),
        }
        for one in found
    ]
    print_table(rows, "No contestants yet: raters compare two replies of the live policy.")
    return 0


async def _after_one_question(endpoint: Contestant, sampling: Sampling) -> str:
    models = OutsideModels()
    try:
        return await models.ask_once(endpoint, sampling, secret)
    finally:
        await models.close()


def _states(settings: Settings) -> dict[str, ToldStanding]:
    """How outside models stand, by name: the feedback app tells it, which alone asks them, where it runs."""
    url = settings.feedback_url
    if url is None or settings.admin_token is None:
        return {}
    try:
        with httpx.Client(proxy=proxy_for(url), verify=tls(), trust_env=False, timeout=5.0) as client:
            answer = client.get(f"{url}/health", headers={"Authorization": f"Bearer {settings.admin_token}"})
        told = answer.raise_for_status().json()["contestants"]
        return {name: ToldStanding(**state) for name, state in told.items()}
    except (httpx.HTTPError, ConfigError, ValueError, KeyError, TypeError) as error:
        print(f"The feedback app at {url} does not say how outside models stand ({error!r}).", file=sys.stderr)
        return {}


def _in_words(one: Contestant, states: Mapping[str, ToldStanding]) -> str | None:
    if one.kind != "endpoint":
        return None
    return states[one.name].in_words if one.name in states else "not asked yet"
