"""Completion in real shells: what a person gets who presses Tab."""

import re
import shutil
import subprocess
import sys

import pytest

from orchestrator import cli

# What is typed, and what a shell must offer for it.
TYPED = {
    ("cyc",): {"cycle"},
    ("cycle", "sh"): {"show"},
    ("cycle", "show", "--js"): {"--json"},
    ("worker", "--pool", ""): {"cpu", "gpu"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("completion")
    for shell in cli.SHELLS:
        (out / shell).write_text(cli.completion_script(shell))
    return out


def shell_says(shell, words):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    return subprocess.run([shell, *words], capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("typed", TYPED, ids=" ".join)
def test_bash_completes(folder, typed):
    words = " ".join(f"'{word}'" for word in ("orchestrator", *typed))
    ask = f"source '{folder}/bash'; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _shtab_orchestrator"
    offered = shell_says("bash", ["--norc", "-c", f'{ask}; printf "%s\\n" "${{COMPREPLY[@]}}"'])
    assert set(offered.split()) == TYPED[typed]


@pytest.mark.parametrize("typed", TYPED, ids=" ".join)
def test_fish_completes(folder, typed):
    ask = f"source '{folder}/fish'; complete -C 'orchestrator {' '.join(typed)}'"
    offered = shell_says("fish", ["--no-config", "-c", ask])
    assert {line.split("\t")[0] for line in offered.splitlines()} == TYPED[typed]


def test_zsh_reads_it_and_finds_every_command(folder):
    assert shell_says("zsh", ["-f", "-n", str(folder / "zsh")]) == ""
    lists = "autoload -Uz compinit; compinit -u -D; eval \"$(cat '%s')\"; whence -f %s"
    function = "_shtab_orchestrator_commands"
    listed = shell_says("zsh", ["-f", "-c", lists % (folder / "zsh", function)])
    assert set(re.findall(r"[( ]([a-z-]+):'", listed)) == set(cli.COMMANDS)
    # By its first line zsh takes the file from a folder of $fpath.
    assert (folder / "zsh").read_text().startswith("#compdef orchestrator\n")


def test_the_script_says_where_it_goes_and_needs_no_torch():
    code = (
        "import sys\nfrom orchestrator import cli\nassert cli.main(['--completion', 'fish']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "\n# orchestrator --completion fish > ~/.config/fish/completions/orchestrator.fish\n" in ended.stdout[:300]


def test_an_unknown_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--completion", "csh"])
    assert stop.value.code == 2
    assert "invalid choice: 'csh' (choose from 'bash', 'zsh', 'fish')" in capsys.readouterr().err


def test_help_lists_each_command_once_under_its_heading(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    sections = {section.split(":\n")[0]: section for section in out.split("\n\n")}
    for heading, group in cli.GROUPS.items():
        assert re.findall(r"^  ([a-z-]+)", sections[heading], re.MULTILINE) == list(group)
    assert len(re.findall(r"^  [a-z]", out, re.MULTILINE)) == len(cli.COMMANDS)
