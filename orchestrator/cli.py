"""The `orchestrator` command: everything an operator does by hand.

Only the chosen command's module is imported, so that `--help` answers at once. Each module in
`orchestrator/commands/` has `configure(parser)` and `run(args) -> exit status`; its folder is its group in the help.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from orchestrator.database import as_operators_error
from orchestrator.errors import OrchestratorError
from orchestrator.http_shared.proxies import spare_loopback
from orchestrator.terminal import print_whatever_comes

# By heading of the help: each command's module below `orchestrator/commands/`, and its summary.
GROUPS = {
    "The instance: its processes, and how they are reached": {
        "up": ("running.up", "run everything on this machine until Ctrl-C"),
        "demo": ("running.demo", "three cycles of the loop in a small world, in minutes"),
        "register": ("running.register", "create the Prefect deployments and work pools"),
        "worker": ("running.worker", "run a Prefect worker for the cpu or gpu pool"),
        "serve-policy": ("running.serve_policy", "run the policy server"),
        "serve-feedback": ("running.serve_feedback", "run the feedback app"),
        "migrate": ("running.migrate", "bring the database to the newest schema"),
        "doctor": ("running.doctor", "whether the stages of a configuration fit into this machine's memory"),
        "key": ("running.key", "API keys, by which programs reach the policy server"),
    },
    "The loop: cycles, and what came of them": {
        "live": ("cycles.live", "what is live and why, and where the loop is"),
        "cycle": ("cycles.cycle", "run, list and show cycles"),
        "roll-back": ("cycles.roll_back", "go back to the policy that was live before"),
        "promote": ("cycles.promote", "put any snapshot live by hand"),
        "experiment": ("cycles.experiment", "questions to the data beside the cycles: robustness"),
        "elo": ("cycles.elo", "where every contestant that raters compared stands"),
        "evaluate-pm": ("cycles.evaluate_pm", "a preference model on pairs of published benchmarks"),
        "ood": ("cycles.ood", "detectors of requests far from what a policy was trained to answer"),
        "metrics": ("cycles.metrics", "what jobs measured while they ran, for other tools"),
        "artifacts": ("cycles.artifacts", "list artifacts"),
        "lineage": ("cycles.lineage", "what an artifact, reply or comparison came from and went into"),
        "verify": ("cycles.verify", "check every artifact against its digest"),
    },
    "The people: raters, their work, and who answers them": {
        "operator": ("people.operator", "people at the desk, by name, and what they did"),
        "rater": ("people.rater", "add raters and list them"),
        "invite": ("people.invite", "links by which people become raters"),
        "study": ("people.study", "studies on Prolific and MTurk whose people are sent here"),
        "group": ("people.group", "raters that are given work together"),
        "queue": ("people.queue", "queues of work: who may do what"),
        "announce": ("people.announce", "tell every rater something above their tasks"),
        "problem": ("people.problem", "what raters reported"),
        "contestant": ("people.contestant", "who can answer raters beside plain policies"),
        "pairing": ("people.pairing", "the pairing table: which contestants meet in a task"),
    },
    "The data: comparisons in files": {
        "import": ("data.import_", "import human comparisons from files"),
        "quarantine": ("data.quarantine", "records that an import could not take, and why"),
        "export": ("data.export", "export comparisons to a file"),
        "check-data": ("data.check_data", "find repeats and texts of evaluations in files of comparisons"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
# How a shell that is started anew knows the script, by the name of the shell.
SHELLS = {
    "bash": "source <(orchestrator --completion bash)  # in ~/.bashrc",
    "zsh": "orchestrator --completion zsh > FOLDER/_orchestrator  # a folder of $fpath",
    "fish": "orchestrator --completion fish > ~/.config/fish/completions/orchestrator.fish",
}


def make_parser(configured: Collection[str], *, for_completion: bool = False) -> argparse.ArgumentParser:
    """The parser of the command line; the `configured` commands know their options, and their modules are imported."""
    width = max(map(len, COMMANDS)) + 2
    groups = [
        f"{heading}:\n" + "\n".join(f"  {name:<{width}}{summary}" for name, (_, summary) in group.items())
        for heading, group in GROUPS.items()
    ]
    parser = argparse.ArgumentParser(
        prog="orchestrator",
        usage="orchestrator [-h] [--completion SHELL] COMMAND ...",
        description="Iterated online RLHF: people compare replies, their comparisons train the next policy.",
        epilog="\n\n".join([*groups, "`orchestrator COMMAND --help` tells the options of a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--completion",
        choices=SHELLS,
        metavar="SHELL",
        help=f"print the script by which {', '.join(SHELLS)} complete commands and options",
    )
    # Listed below their headings in the help, and not a second time as arguments.
    hidden = None if for_completion else argparse.SUPPRESS
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", prog="orchestrator", help=hidden, required=True
    )
    for name, (_, summary) in COMMANDS.items():
        listed: dict[str, Any] = {"help": summary} if for_completion else {}
        subparser = subparsers.add_parser(name, description=summary[0].upper() + summary[1:] + ".", **listed)
        if name in configured:
            _module(name).configure(subparser)
    return parser


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"orchestrator.commands.{COMMANDS[name][0]}")


def completion_script(shell: str) -> str:
    """What a shell runs to complete commands, options, their choices and files."""
    # Imported here: no command but this one needs it.
    import shtab

    parser = make_parser(COMMANDS, for_completion=True)
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    # zsh knows such a file by its first line, which stays the first.
    first, _, rest = shtab.complete(parser, shell).partition("\n")
    return f"{first}\n# {SHELLS[shell]}\n{rest}"


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _actions(subparser)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0 done, 1 a negative answer, 2 an error."""
    print_whatever_comes()
    spare_loopback(os.environ)
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in arguments if not word.startswith("-")), "")
    if arguments[:1] == ["--completion"] and chosen in SHELLS:
        print(completion_script(chosen))
        return 0
    args = make_parser([chosen]).parse_args(arguments)
    try:
        status: int = _module(args.command).run(args)
        return status
    except OrchestratorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # The reader of our output, `head` for one, has gone: not an error of ours.
        sys.stderr.close()
        return 0
    except Exception as error:
        answer = as_operators_error(error)
        if answer is None:
            raise
        print(f"error: {answer}", file=sys.stderr)
        return answer.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
