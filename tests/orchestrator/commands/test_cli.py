"""The command line: errors in one line, status 2, and no torch before it is needed."""

import ast
import os
import subprocess
import sys

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from db.session import make_engine
from orchestrator import cli
from orchestrator.database import as_operators_error
from orchestrator.settings import PROJECT_ROOT


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


def test_unknown_command_is_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["nonsense"])
    assert stop.value.code == 2
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_no_command_imports_torch_to_tell_its_options(name):
    code = (
        "import sys\nfrom orchestrator import cli\n"
        f"try: cli.main([{name!r}, '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_worker_without_a_server_says_what_it_lacks(home, monkeypatch, capsys):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert cli.main(["worker", "--pool", "gpu"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: No Prefect server: no instance runs on ")
    assert said.count("\n") == 1


def test_what_a_command_becomes_has_the_instance_s_settings_of_prefect_and_not_the_user_s(home, tmp_path):
    shown = "import os; print({n: v for n, v in os.environ.items() if n.startswith('PREFECT_')})"
    code = f"from orchestrator.commands.running.worker import become; become('timeit', ['-n1', '-r1', {shown!r}])"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"HOME": str(tmp_path), "PREFECT_API_URL": "http://gpu/api", "PREFECT_WORKER_QUERY_SECONDS": "7"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = ast.literal_eval(run.stdout.splitlines()[0])
    assert (found["PREFECT_HOME"], found["PREFECT_API_URL"]) == (str(home / "prefect"), "http://gpu/api")
    # Without heartbeats nothing would end the runs of a machine that vanished.
    assert found["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    # What the environment sets, for this very process, stays.
    assert found["PREFECT_WORKER_QUERY_SECONDS"] == "7"


def test_a_database_that_nobody_migrated_is_told(home, postgres, monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", postgres.url_of("postgres"))
    assert cli.main(["artifacts"]) == 2
    assert capsys.readouterr().err.endswith("Run `orchestrator migrate`.\n")


@pytest.mark.parametrize(
    "words", [["cycle", "list"], ["migrate"], ["cycle", "run", "--inline", "--config", "cycle.toml"]]
)
def test_a_database_that_is_not_there_is_one_line_without_its_password(home, tmp_path, words):
    (tmp_path / "cycle.toml").write_text('[initial_policy]\npath = "some/model"\n')
    run = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        env=os.environ
        | {"DATABASE_URL": "postgresql://u:hidden@127.0.0.1:1/x?sslmode=disable", "PYTHONPATH": str(PROJECT_ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    [line] = run.stderr.splitlines()
    assert line.startswith("error: The database at 127.0.0.1:1/x does not answer (connection")
    assert line.endswith("TCP/IP connections?). Start it, or check DATABASE_URL.")
    assert "hidden" not in line


def test_what_a_database_that_answers_refuses_is_no_missing_database(home, postgres):
    engine = make_engine(postgres.url_of("postgres"))
    with engine.connect() as connection:
        connection.execute(text("set statement_timeout = 1"))
        with pytest.raises(OperationalError) as refused:
            connection.execute(text("select pg_sleep(9)"))
    engine.dispose()
    assert as_operators_error(refused.value) is None


def test_a_gate_needs_its_detector_before_the_server_starts(home, database_url, monkeypatch, capsys):
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert cli.main(["serve-policy", "--detector", "abcdef"]) == 2
    assert "--detector abcdef is the beginning of 0 detectors' digests; expected one." in capsys.readouterr().err
    monkeypatch.setenv("ORCHESTRATOR_DETECTOR", "sha256:123456")
    assert cli.main(["serve-policy"]) == 2
    assert "ORCHESTRATOR_DETECTOR sha256:123456 is the beginning of 0 detectors' digests" in capsys.readouterr().err
    # The command line goes before the environment.
    assert cli.main(["serve-policy", "--detector", "abcdef"]) == 2
    assert "--detector abcdef is the beginning of 0 detectors' digests; expected one." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ORCHESTRATOR_DETECTOR", "strict", "ORCHESTRATOR_DETECTOR is 'strict'; expected the digest of a detector"),
        (
            "ORCHESTRATOR_DETECTOR_ACTION",
            "block",
            "ORCHESTRATOR_DETECTOR_ACTION is 'block'; expected log, flag or refuse.",
        ),
    ],
)
def test_an_impossible_gate_is_told_before_anything_starts(home, monkeypatch, capsys, variable, value, says):
    monkeypatch.setenv(variable, value)
    for command in ("serve-policy", "up"):
        assert cli.main([command]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(("old", "new"), [("--gate", "--detector"), ("--gate-action", "--detector-action")])
def test_an_option_s_old_name_is_refused_with_its_new_one(capsys, old, new):
    with pytest.raises(SystemExit) as stop:
        cli.main(["serve-policy", old, "flag"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: {old} is now called {new}; give that instead.\n")


@pytest.mark.parametrize("name", ["", "_ACTION"])
def test_a_variable_s_old_name_is_refused_with_its_new_one(home, monkeypatch, capsys, name):
    monkeypatch.setenv(f"ORCHESTRATOR_GATE{name}", "flag")
    assert cli.main(["artifacts"]) == 2
    expected = (
        f"error: ORCHESTRATOR_GATE{name} is now called ORCHESTRATOR_DETECTOR{name}; set that instead, to 'flag'.\n"
    )
    assert capsys.readouterr().err == expected
