"""The `orchestrator` command: everything an operator does by hand.

Only the chosen command's module is imported, so that `--help` answers at once. Each module in
`orchestrator/commands/` has `configure(parser)` and `run(args) -> exit status`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from orchestrator.database import as_operators_error
from orchestrator.errors import OrchestratorError

COMMANDS = {
    "up": ("orchestrator.commands.running.up", "run everything on this machine until Ctrl-C"),
    "demo": ("orchestrator.commands.running.demo", "three cycles of the loop in a small world, in minutes"),
    "cycle": ("orchestrator.commands.cycles.cycle", "run, list and show cycles"),
    "experiment": ("orchestrator.commands.cycles.experiment", "questions to the data beside the cycles: robustness"),
    "import": ("orchestrator.commands.data.import_", "import human comparisons from files"),
    "quarantine": ("orchestrator.commands.data.quarantine", "records that an import could not take, and why"),
    "export": ("orchestrator.commands.data.export", "export comparisons to a file"),
    "check-data": (
        "orchestrator.commands.data.check_data",
        "find repeats and texts of evaluations in files of comparisons",
    ),
    "evaluate-pm": ("orchestrator.commands.cycles.evaluate_pm", "a preference model on pairs of published benchmarks"),
    "metrics": ("orchestrator.commands.cycles.metrics", "what jobs measured while they ran, for TensorBoard"),
    "artifacts": ("orchestrator.commands.cycles.artifacts", "list artifacts"),
    "lineage": (
        "orchestrator.commands.cycles.lineage",
        "what an artifact, reply or comparison came from and went into",
    ),
    "verify": ("orchestrator.commands.cycles.verify", "check every artifact against its digest"),
    "rater": ("orchestrator.commands.people.rater", "add raters and list them"),
    "invite": ("orchestrator.commands.people.invite", "links by which people become raters"),
    "study": ("orchestrator.commands.people.study", "studies on Prolific and MTurk whose people are sent here"),
    "group": ("orchestrator.commands.people.group", "raters that are given work together"),
    "queue": ("orchestrator.commands.people.queue", "queues of work: who may do what"),
    "contestant": ("orchestrator.commands.people.contestant", "who can answer raters beside plain policies"),
    "pairing": ("orchestrator.commands.people.pairing", "the pairing table: which contestants meet in a task"),
    "announce": ("orchestrator.commands.people.announce", "tell every rater something above their tasks"),
    "problem": ("orchestrator.commands.people.problem", "what raters reported"),
    "key": ("orchestrator.commands.running.key", "API keys, by which programs reach the policy server"),
    "elo": ("orchestrator.commands.cycles.elo", "where every contestant that raters compared stands"),
    "ood": ("orchestrator.commands.cycles.ood", "detectors of requests far from what a policy was trained to answer"),
    "register": ("orchestrator.commands.running.register", "create the Prefect deployments and work pools"),
    "migrate": ("orchestrator.commands.running.migrate", "bring the database to the newest schema"),
    "serve-policy": ("orchestrator.commands.running.serve_policy", "run the policy server"),
    "serve-feedback": ("orchestrator.commands.running.serve_feedback", "run the feedback app"),
    "worker": ("orchestrator.commands.running.worker", "run a Prefect worker for the cpu or gpu pool"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0 done, 1 a negative answer, 2 an error."""
    parser = argparse.ArgumentParser(
        prog="orchestrator",
        description="Iterated online RLHF: people compare replies, their comparisons train the next policy.",
        epilog="`orchestrator COMMAND --help` tells the options of a command.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    modules = {}
    for name, (module_name, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            modules[name] = importlib.import_module(module_name)
            modules[name].configure(subparser)
    args = parser.parse_args(arguments)
    try:
        status: int = modules[args.command].run(args)
        return status
    except OrchestratorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # The reader of our output, `head` for one, has gone: not an error of ours.
        sys.stderr.close()
        return 0
    except Exception as error:
        told = as_operators_error(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return told.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
