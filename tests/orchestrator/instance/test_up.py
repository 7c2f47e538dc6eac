"""An instance: that everything answers, that what ends is started again, and that nothing outlives its owner."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from orchestrator import cli, running_instance
from orchestrator.errors import ConfigError, ServiceUnavailable
from orchestrator.http_shared.addresses import bound
from orchestrator.instance.prefect_api import api_url
from orchestrator.instance.up import Instance
from orchestrator.settings import Settings
from tests.paths import PROJECT_ROOT
from tests.waiting import wait_for

SERVICES = ("prefect-server", "policy-server", "feedback-app", "worker-cpu", "worker-gpu")


def processes_of(home: Path) -> dict[int, str]:
    """Every live process that has the home in its command, directory or environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            told = command + os.fsencode(os.readlink(entry / "cwd")) + (entry / "environ").read_bytes()
        except OSError:
            continue
        if command and os.fsencode(str(home)) in told:
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5.0).status_code == 200
    except httpx.HTTPError:
        return False


def command(home: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command line, as from another terminal that knows the home alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "DATABASE_"))}
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        env=kept | {"ORCHESTRATOR_HOME": str(home), "PYTHONPATH": str(PROJECT_ROOT)} | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_service_answers_on_loopback(instance: Instance) -> None:
    assert tuple(sorted(instance.children)) == tuple(sorted(SERVICES))
    for url in (
        f"{instance.prefect_api_url}/health",
        f"{instance.policy_url}/health",
        f"{instance.feedback_url}/health",
    ):
        assert url.startswith("http://127.0.0.1:")
        assert answers(url)


def test_the_prefect_ui_calls_its_own_server(instance: Instance) -> None:
    settings = httpx.get(f"{instance.prefect_api_url.removesuffix('/api')}/ui-settings").json()
    assert settings["api_url"] == "/api"


def test_the_prefect_ui_has_no_second_one_to_switch_to(instance: Instance) -> None:
    """Its menu and its banner offer what the server says is there."""
    url = instance.prefect_api_url.removesuffix("/api")
    settings = httpx.get(f"{url}/ui-settings").json()
    assert (settings["available_uis"], settings["v2_base_url"]) == (["v1"], None)
    # Also to a browser that once chose it.
    answer = httpx.get(f"{url}/runs", headers={"accept": "text/html"}, cookies={"prefect_ui_version": "v2"})
    assert answer.status_code == 200
    assert "<html" in answer.text


def test_links_for_people_begin_with_the_address_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCHESTRATOR_FEEDBACK_URL", raising=False)
    instance = Instance(tmp_path, feedback_port=8085)
    assert instance.env()["ORCHESTRATOR_FEEDBACK_URL"] == "http://127.0.0.1:8085"
    monkeypatch.setenv("ORCHESTRATOR_FEEDBACK_URL", "https://rate.example.org")
    assert instance.env()["ORCHESTRATOR_FEEDBACK_URL"] == "https://rate.example.org"
    assert instance.feedback_url == "http://127.0.0.1:8085"


def test_another_terminal_finds_the_instance_by_its_home(instance: Instance) -> None:
    added = command(instance.home, "rater", "add", "found-by-home", "--json")
    assert added.returncode == 0, added.stderr
    assert json.loads(added.stdout)["handle"] == "found-by-home"


def test_addresses_and_secrets_are_for_the_owner_alone(instance: Instance) -> None:
    for name in ("instance.json", "admin-token"):
        assert stat.S_IMODE((instance.home / name).stat().st_mode) == 0o600


def test_a_second_instance_on_the_same_home_is_refused(instance: Instance) -> None:
    with pytest.raises(ServiceUnavailable, match=rf"already runs on .*process {os.getpid()}"):
        Instance(instance.home).start()
    # The refused one must not have taken anything down with it.
    assert answers(f"{instance.feedback_url}/health")


def test_a_port_where_another_instance_s_prefect_server_answers_is_refused(instance: Instance, tmp_path: Path) -> None:
    port = urlsplit(instance.prefect_api_url).port or 0
    with pytest.raises(ConfigError) as refused:
        Instance(tmp_path, prefect_port=port).start()
    said = str(refused.value)
    assert f"Can't listen on 127.0.0.1 port {port}: Address already in use. Choose another --prefect-port" in said
    assert "A Prefect server of instance " in said
    assert str(instance.home / "prefect") in said
    assert not (tmp_path / "logs").exists()


def test_a_port_out_of_range_is_refused_before_it_is_stored(tmp_path: Path) -> None:
    done = command(tmp_path, "up", "--prefect-port", "70000")
    assert done.returncode == 2
    assert "--prefect-port: found '70000'; expected a port, 1 to 65535, or 0 for a free one" in done.stderr
    with pytest.raises(ConfigError, match="--policy-port is 70000; expected 1 to 65535"):
        Instance(tmp_path, policy_port=70_000).start()
    assert not (tmp_path / running_instance.FILE).exists()


def test_a_port_out_of_range_that_was_stored_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / running_instance.FILE).write_text('{"feedback_url": "http://127.0.0.1:70000"}')
    instance = Instance(tmp_path)
    instance._choose_ports()
    assert 0 < (urlsplit(instance.feedback_url).port or 0) < 65_536


@pytest.mark.parametrize("host", ["203.0.113.7", "nowhere.invalid"])
def test_a_host_that_is_not_of_this_machine_is_called_that(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match=f"Can't listen on {re.escape(host)}: this machine has no such address"):
        Instance(tmp_path, host=host).start()
    # As every server of ours listens.
    with pytest.raises(ConfigError, match="Choose another --host"):
        bound(host, 0)


def test_an_ipv6_host_stands_in_brackets_in_urls(tmp_path: Path) -> None:
    assert Instance(tmp_path, host="::1", feedback_port=8080).feedback_url == "http://[::1]:8080"
    assert Instance(tmp_path, host="::", policy_port=8081).policy_url == "http://[::1]:8081"


def test_a_service_that_is_killed_is_started_again_at_the_same_address(instance: Instance) -> None:
    child = instance.children["feedback-app"]
    assert child.process is not None
    first = child.process.pid
    os.kill(first, signal.SIGKILL)
    wait_for("another process", lambda: child.process is not None and child.process.pid != first)
    wait_for("an answer", lambda: answers(f"{instance.feedback_url}/health"))


def test_the_database_that_is_killed_is_started_again_at_the_same_address(instance: Instance) -> None:
    assert instance.postgres is not None
    first = instance.postgres.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_for("another postmaster", lambda: instance.postgres is not None and instance.postgres.pid not in (None, first))
    wait_for("an answer", lambda: command(instance.home, "rater", "list", "--json").returncode == 0)


def test_a_file_left_by_a_killed_instance_is_not_believed(home: Path) -> None:
    running_instance.InstanceFile(1, "postgresql://x/y", "http://p", "http://q", "http://f", "secret").write(home)
    assert running_instance.running(home) is None
    assert Settings.from_env().database_url is None
    with running_instance.held(home):
        assert Settings.from_env().database_url == "postgresql+psycopg2://x/y"
        # What starts an instance of its own must not write into that database.
        assert Settings.from_env(find_instance=False).database_url is None


def test_a_command_without_an_instance_names_those_that_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "a user"))
    within, usual, ended = home / "demo-1", tmp_path / "a user" / ".orchestrator" / "demo-2", home / "demo-3"
    for one in (within, usual, ended):
        one.mkdir(parents=True)
        running_instance.InstanceFile(1, "postgresql://x/y", "http://p", "http://q", "http://f", "secret").write(one)
    with running_instance.held(within), running_instance.held(usual):
        assert cli.main(["cycle", "list"]) == 2
    said = capsys.readouterr().err
    assert f"One runs on {usual} (or {within}): `export ORCHESTRATOR_HOME='{usual}'` to speak to it." in said
    assert str(ended) not in said
    with running_instance.held(within), pytest.raises(ServiceUnavailable, match=r"One runs on .*/demo-1: `export ORC"):
        api_url(home)
    assert cli.main(["cycle", "list"]) == 2
    assert "runs on" not in capsys.readouterr().err


def test_a_user_s_own_prefect_settings_do_not_reach_the_instance(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "of a cloud account")
    monkeypatch.setenv("PREFECT_API_URL", "https://elsewhere.example/api")
    env = instance.env()
    assert "PREFECT_API_KEY" not in env
    assert env["PREFECT_API_URL"] == instance.prefect_api_url
    assert env["PREFECT_HOME"] == str(instance.home / "prefect")


def test_the_policy_server_of_an_instance_gets_the_detector(
    instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_DETECTOR", "sha256:abcdef")
    monkeypatch.setenv("ORCHESTRATOR_DETECTOR_ACTION", "refuse")
    env = instance.env()
    assert (env["ORCHESTRATOR_DETECTOR"], env["ORCHESTRATOR_DETECTOR_ACTION"]) == ("sha256:abcdef", "refuse")
    assert "--detector" not in instance.children["policy-server"].command


def test_a_service_that_cannot_start_ends_the_others_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServiceUnavailable, match=r"The database at 127\.0\.0\.1:1/none does not answer"):
        Instance(tmp_path / "home", database_url="postgresql://nobody@127.0.0.1:1/none").start()
    assert processes_of(tmp_path / "home") == {}
    assert running_instance.running(tmp_path / "home") is None


class Up:
    """`orchestrator up` as a person starts it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", "up"],
            env=os.environ | {"ORCHESTRATOR_HOME": str(home), "PYTHONPATH": str(PROJECT_ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.printed = ""
        for line in self.process.stdout:
            self.printed += line
            if line.startswith("Up."):
                break
        else:
            pytest.fail(f"`orchestrator up` ended: {self.printed}")

    def address(self, name: str) -> str:
        found = re.search(rf"{name}: +(\S+)", self.printed)
        assert found is not None, self.printed
        return found.group(1)


@pytest.mark.slow
def test_up_ends_cleanly_on_ctrl_c_and_comes_back_at_the_same_addresses(tmp_path: Path) -> None:
    home = tmp_path / "a home with spaces"
    up = Up(home)
    first = up.address("Prefect UI")
    assert answers(up.address("feedback app") + "/health")
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0
    assert processes_of(home) == {}
    again = Up(home)
    assert again.address("Prefect UI") == first
    again.process.send_signal(signal.SIGTERM)
    assert again.process.wait(60) == 0
    assert processes_of(home) == {}


@pytest.mark.slow
def test_nothing_outlives_an_instance_that_is_killed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    up = Up(home)
    assert len(processes_of(home)) > len(SERVICES)
    up.process.kill()
    up.process.wait()
    wait_for("every process to end", lambda: processes_of(home) == {}, 20)
