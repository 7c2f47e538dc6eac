"""Many raters at once on the pages, in open loop; and what becomes of it when processes are killed in the middle.

    python benchmarks/raters_load.py [--raters 500] [--seconds 120] [--pause 5 10] [--p99-ms 150] [--kill] [--policy]

The feedback app runs as a process of its own over the embedded Postgres; replies come from a stub of the policy server,
in this benchmark alone, or with `--policy` from the real one over a policy of the demo's size. Every rater sends a
request every 5 to 10 s, at times fixed beforehand: a slow answer does not make the next request later, and latency
counts from the intended time. The load generator shares the machine.

With `--kill` the feedback app, the policy server and Postgres are each ended by SIGKILL in the middle and started
again; raters send again until they have an answer, as the page's script does. Afterwards every acknowledged choice must
be in the database exactly once, and no other. Exits with 1 where something is missing, counted twice, failed or slow.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import httpx  # noqa: E402
from sqlalchemy import create_engine, select  # noqa: E402
from sqlalchemy.orm import Session  # noqa: E402

from db import tables as t  # noqa: E402
from db.migrate import upgrade  # noqa: E402
from orchestrator.instance.ports import free_port  # noqa: E402
from orchestrator.instance.postgres import EmbeddedPostgres  # noqa: E402
from orchestrator.people import access  # noqa: E402
from orchestrator.people.instruction_versions import shipped  # noqa: E402
from orchestrator.people.tasks import TASKS  # noqa: E402
from orchestrator.store.artifacts import ArtifactStore  # noqa: E402

STUB = """
import sys
sys.path[:0] = {paths!r}
import uvicorn
from tests.orchestrator.web.stand_in import StandIn
uvicorn.run(StandIn().app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
"""
START_TIMEOUT_S = 60.0
TURNS = 3
REPLY_TOKENS = 40


@dataclass
class Service:
    """A process that can be killed and started again on its port."""

    command: list[str]
    env: dict[str, str]
    health: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = subprocess.Popen(self.command, env=self.env, cwd=ROOT, start_new_session=True)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with suppress(httpx.HTTPError):
                if httpx.get(self.health, timeout=2, trust_env=False).status_code < 500:
                    return
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"{self.command} does not answer at {self.health}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass
class Tally:
    """What the raters saw."""

    latencies_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)
    acknowledged: dict[int, tuple[str, int]] = field(default_factory=dict)
    """Side and strength that the server confirmed, by pair."""
    sent_again: int = 0


class LoadRater:
    """One rater's browser: signed in, going through conversations, one request at a time, each at its own time."""

    def __init__(self, client: httpx.AsyncClient, cookie: str, tally: Tally, pause: tuple[float, float]) -> None:
        self.client = client
        self.headers = {"Cookie": f"orchestrator_session={cookie}", "Sec-Fetch-Site": "same-origin"}
        self.tally = tally
        self.pause = pause
        self.due = 0.0

    async def run(self, begin: float, until: float, patient: bool) -> None:
        """Hold conversations until the time is over."""
        self.patient = patient
        self.due = begin + random.uniform(0, self.pause[1])
        self.until = until
        with suppress(TimeoutError):
            while True:
                await self._conversation()

    async def _conversation(self) -> None:
        page = await self._page("tasks", "/")
        page = await self._page("instructions", "/tasks/helpful/helpful")
        agree = {"agree": shipped("helpful").version}
        where = await self._form("begin", page, "/tasks/helpful/helpful", agree)
        page = await self._page("dialogue", where)
        for turn in range(TURNS):
            where = await self._form("message", page, f"{where}/messages", {"content": f"question {turn}"})
            page = await self._complete_pair(where)
            pair_id = int(_found(r'data-pair="(\d+)"', page))
            side, strength = random.choice("ab"), random.randint(1, 4)
            await self._form("choice", page, f"/pairs/{pair_id}/comparison", {"choice": f"{side}{strength}"})
            self.tally.acknowledged[pair_id] = (side, strength)
            page = await self._page("dialogue", where)
        await self._form("end", page, f"{where}/end", {})

    async def _complete_pair(self, where: str) -> str:
        """The page once both replies are there; looking again is no extra load beyond one request a time slot."""
        while True:
            page = await self._page("dialogue", where)
            if 'data-complete="yes"' in page:
                return page

    async def _page(self, kind: str, path: str) -> str:
        answer = await self._send(kind, lambda: self.client.get(path, headers=self.headers | {"Accept": "text/html"}))
        return answer.text

    async def _form(self, kind: str, page: str, action: str, values: dict[str, str]) -> str:
        form = _found(rf'<form method="post" action="{re.escape(action)}".*?</form>', page, group=0)
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form))
        headers = self.headers | {"Accept": "application/json"}
        answer = await self._send(kind, lambda: self.client.post(action, data=hidden | values, headers=headers))
        told: str = answer.json()["go"]
        return told

    async def _send(self, kind: str, send: Callable[[], object]) -> httpx.Response:
        """One request at its intended time; sent again where nobody answers, if told to be patient."""
        intended = self.due
        if intended > self.until:
            raise TimeoutError
        self.due += random.uniform(*self.pause)
        await asyncio.sleep(max(0.0, intended - time.monotonic()))
        wait_s = 0.2
        while True:
            answer: httpx.Response | None = None
            with suppress(httpx.HTTPError):
                answer = await send()  # type: ignore[misc]
            if answer is not None and answer.status_code < 500:
                break
            if not self.patient:
                self.tally.errors.append(f"{kind}: {answer.status_code if answer else 'no answer'}")
                raise TimeoutError
            self.tally.sent_again += 1
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, 4.0)
        if answer.status_code != 200:
            self.tally.errors.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
            raise TimeoutError
        self.tally.latencies_ms[kind].append((time.monotonic() - intended) * 1000)
        return answer


def _found(pattern: str, page: str, group: int = 1) -> str:
    found = re.search(pattern, page, re.DOTALL)
    if found is None:
        raise ValueError(f"the page has no {pattern}: {page[:2000]}")
    return found.group(group)


def publish_policy(home: Path, url: str) -> None:
    """A policy of the demo's size with random weights, live."""
    from feedback_throughput import put_live, write_policy

    store = ArtifactStore(f"file://{home / 'artifacts'}", home / "cache")
    put_live(url, store.publish(write_policy(home / "policy")).digest, REPLY_TOKENS, 0)


@contextmanager
def services(postgres: EmbeddedPostgres, home: Path, *, policy: bool) -> Iterator[tuple[Service, Service]]:
    """What answers in the policy server's place, or itself, and the feedback app, as processes."""
    stub_port, app_port = free_port(), free_port()
    stub_url, app_url = f"http://127.0.0.1:{stub_port}", f"http://127.0.0.1:{app_port}"
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": postgres.url,
        "ORCHESTRATOR_POLICY_URL": stub_url,
        "ORCHESTRATOR_HOME": str(home),
        "OMP_NUM_THREADS": "1",
    }
    code = STUB.format(paths=[str(ROOT / "tests"), str(ROOT / "tests" / "web")])
    command = [sys.executable, "-c", code, str(stub_port)]
    if policy:
        command = [sys.executable, "-m", "orchestrator.cli", "serve-policy", "--port", str(stub_port)]
    stub = Service(command, env, f"{stub_url}/health")
    serve = [sys.executable, "-m", "orchestrator.cli", "serve-feedback", "--port", str(app_port)]
    app = Service(serve, env, f"{app_url}/health")
    try:
        stub.start()
        app.start()
        yield stub, app
    finally:
        app.kill()
        stub.kill()


def sign_in(url: str, raters: int, *, policy: bool) -> list[str]:
    """Raters who have agreed to the instructions, with a session each; their cookies."""
    from tests.running import add_artifact, deploy

    engine = create_engine(url)
    cookies = []
    with Session(engine) as session, session.begin():
        if not policy:
            deploy(session, add_artifact(session, "live"))
        for number in range(raters):
            rater = t.Rater(handle=f"load-{number}", kind="human")
            session.add(rater)
            session.flush()
            access.consent(session, rater.id, shipped(TASKS["helpful"].questions[0]).version)
            cookies.append(access.begin_session(session, rater.id))
    engine.dispose()
    return cookies


async def load(app_url: str, cookies: list[str], args: argparse.Namespace, faults: Callable[[], None] | None) -> Tally:
    """All raters for the time given; `faults` begins what happens to the processes meanwhile."""
    tally = Tally()
    async with AsyncExitStack() as stack:
        # A client for each, as each has a browser. One for all looks at every connection it holds with every request,
        # which took 40 of the 50 ms that were measured so.
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=app_url, timeout=30, verify=False, trust_env=False)
            )
            for _ in cookies
        ]
        begin = time.monotonic() + 1
        raters = [
            LoadRater(client, cookie, tally, tuple(args.pause)) for client, cookie in zip(clients, cookies, strict=True)
        ]
        work = [rater.run(begin, begin + args.seconds, faults is not None) for rater in raters]
        if faults is not None:
            faults()
        results = await asyncio.gather(*work, return_exceptions=True)
    tally.errors += [repr(result) for result in results if isinstance(result, BaseException)]
    return tally


class Faults(threading.Thread):
    """Ends every process once. Postgres ends with the thread that started it, so this one lives until it is told."""

    def __init__(self, stub: Service, app: Service, postgres: EmbeddedPostgres, seconds: float) -> None:
        super().__init__(daemon=True)
        self.about = (stub, app, postgres, seconds)
        self.done = threading.Event()
        self.over = threading.Event()

    def run(self) -> None:
        """Kill, then wait."""
        kill_each(*self.about)
        self.done.set()
        self.over.wait()


def kill_each(stub: Service, app: Service, postgres: EmbeddedPostgres, seconds: float) -> None:
    """SIGKILL of the app, the stub and Postgres, a quarter of the time apart, each started again at once."""
    time.sleep(seconds / 4)
    print("SIGKILL: feedback app", flush=True)
    app.kill()
    app.start()
    time.sleep(seconds / 4)
    print("SIGKILL: policy server", flush=True)
    stub.kill()
    stub.start()
    time.sleep(seconds / 4)
    print("SIGKILL: Postgres", flush=True)
    assert postgres.pid is not None
    os.kill(postgres.pid, signal.SIGKILL)
    while postgres.pid is not None:
        time.sleep(0.02)
    postgres.start()


def check(url: str, tally: Tally) -> list[str]:
    """What is missing or wrong in the database, compared with what was acknowledged."""
    engine = create_engine(url)
    with Session(engine) as session:
        rows = session.execute(select(t.Comparison.pair_id, t.Comparison.side, t.Comparison.strength)).all()
    engine.dispose()
    stored = {row.pair_id: (row.side, row.strength) for row in rows}
    problems = [f"pair {pair}: {answer} acknowledged, {stored.get(pair)} stored" for pair, answer in
                tally.acknowledged.items() if stored.get(pair) != answer]  # fmt: skip
    if len(rows) != len(stored):
        problems.append(f"{len(rows) - len(stored)} comparisons are there twice")
    # A choice whose answer had not come when the time was over is stored without our knowing.
    print(f"{len(stored)} comparisons stored, {len(tally.acknowledged)} acknowledged")
    return problems


def percentile(values: list[float], share: float) -> float:
    """The smallest value that this share of the values does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> int:
    """Run the load, print what it met; returns 1 where something is not as promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raters", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--pause", type=float, nargs=2, default=(5.0, 10.0), metavar=("LEAST", "MOST"))
    parser.add_argument("--p99-ms", type=float, default=150)
    parser.add_argument("--at-least", type=float, default=50, help="requests per second to be achieved")
    parser.add_argument("--kill", action="store_true", help="end each process in the middle; latency is not judged")
    parser.add_argument("--policy", action="store_true", help="replies from the real policy server")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder) / "postgres") as postgres:
        upgrade(postgres.url)
        if args.policy:
            publish_policy(Path(folder), postgres.url)
        cookies = sign_in(postgres.url, args.raters, policy=args.policy)
        with services(postgres, Path(folder), policy=args.policy) as (stub, app):
            faults = Faults(stub, app, postgres, args.seconds) if args.kill else None
            app_url = app.health.removesuffix("/health")
            tally = asyncio.run(load(app_url, cookies, args, faults.start if faults else None))
        problems = tally.errors[:20]
        if faults is not None and not faults.done.wait(START_TIMEOUT_S):
            problems.append("not every process was started again")
        problems += check(postgres.url, tally)
        if faults is not None:
            postgres.stop()
            faults.over.set()
    everything = [value for values in tally.latencies_ms.values() for value in values]
    rate = len(everything) / args.seconds
    print(f"{args.raters} raters, {len(everything)} requests in {args.seconds:.0f} s: {rate:.1f} per second")
    report: dict[str, object] = {"raters": args.raters, "per_second": rate, "sent_again": tally.sent_again}
    for kind, values in sorted(tally.latencies_ms.items()):
        p50, p99 = percentile(values, 0.5), percentile(values, 0.99)
        report[kind] = {"count": len(values), "p50_ms": p50, "p99_ms": p99}
        print(f"  {kind:13} {len(values):6}   median {p50:7.1f} ms   p99 {p99:7.1f} ms   most {max(values):7.1f} ms")
        if not args.kill and p99 >= args.p99_ms:
            problems.append(f"{kind}: p99 {p99:.0f} ms, limit {args.p99_ms:.0f} ms")
    if args.kill:
        print(f"  sent again because nobody answered: {tally.sent_again}")
    elif rate < args.at_least:
        problems.append(f"{rate:.1f} requests per second, wanted {args.at_least:.0f}")
    if args.json is not None:
        args.json.write_text(json.dumps(report | {"problems": problems}, indent=2))
    for problem in problems:
        print(f"PROBLEM: {problem}")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
