"""Do the tests bite? Small faults are planted in the files that join the pure functions; survivors are listed.

    pip install -e '.[mutants]'
    make mutants                                       200 of them
    python -m benchmarks.mutants --number 20 --seed 3 --out found.jsonl
    python -m benchmarks.mutants --out found.jsonl --again      those that survived, once more

Of every place in the code that an operator of Cosmic Ray or one of ours can change, one change is drawn; of the places,
`--number`, both by `--seed`. Changes inside texts, documentation and annotations don't count. Each mutant is written
into a copy of the tree and meets the tests of its file in a process forked from one that has torch loaded already. A
mutant that no test sees survives. Which of the survivors compute the same as the code is argued below, in EQUIVALENT;
what a run came to is in docs/log/checks.md, "Two hundred mutants".

Ends with 1 where a mutant survived that isn't named in EQUIVALENT, and those are a tenth or more of the rest.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import hashlib
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The files, and the tests of each: the quickest first, since a mutant's run ends with the first test that fails.
TESTS: dict[str, tuple[str, ...]] = {
    "models/policy/learning.py": (
        "tests/models/policy/test_learning_step.py",
        "tests/models/policy/test_learning_wires.py",
        "tests/models/policy/test_recovery.py",
        "tests/models/policy/test_ppo_correct.py",
    ),
    "models/policy/training.py": (
        "tests/models/policy/test_training_loop.py",
        "tests/models/policy/test_recovery.py",
        "tests/models/policy/test_snapshots.py",
        "tests/models/policy/test_ppo_correct.py",
        "tests/models/jobs/test_train_policy.py",
    ),
    "models/policy/rollout.py": (
        "tests/models/policy/test_learning_step.py",
        "tests/models/policy/test_training_loop.py",
        "tests/models/policy/test_ppo_correct.py",
        "tests/models/jobs/test_evaluate.py",
        "tests/models/jobs/test_train_policy.py",
    ),
    "models/preference/training.py": (
        "tests/models/preference/test_training_step.py",
        "tests/models/preference/test_training_loop.py",
        "tests/models/jobs/test_train_preference_model.py",
    ),
    "orchestrator/judging/gates.py": ("tests/orchestrator/judging/test_gates.py",),
    "orchestrator/judging/standings.py": ("tests/orchestrator/judging/test_standings.py",),
    "orchestrator/data/freeze.py": ("tests/orchestrator/data/test_freeze.py",),
}
# What the tests load and no mutant touches; loaded once, before the first fork.
PRELOADED = (
    "torch", "transformers.models.llama.modeling_llama", "transformers.models.qwen2.modeling_qwen2", "tokenizers",
    "safetensors.torch", "pytest", "hypothesis", "sqlalchemy.orm", "pydantic",
)  # fmt: skip
QUICK, ALL = "not slow and not long and not gpu", "not long and not gpu"
MOST_SURVIVORS = 0.1
# Operators that need arguments.
LEFT_OUT = ("VariableReplacer", "VariableInserter")
# A sum that becomes a shift of bits ends in a TypeError, which any test sees: such mutants would flatter the tests.
NO_ARITHMETIC = ("Bit", "Shift", "Pow", "Mod", "FloorDiv")


@dataclass(frozen=True)
class Mutant:
    """One changed file. `id` is of the change, on whatever line of the file it stands."""

    id: str
    file: str
    line: int
    operator: str
    diff: str
    source: str


@dataclass(frozen=True)
class Found:
    """What became of a mutant: "killed", "timeout" or "survived"."""

    id: str
    file: str
    line: int
    operator: str
    diff: str
    outcome: str
    seconds: float


# Which mutants there are


def mutants_of(file: str, source: str) -> list[list[Mutant]]:
    """The mutants of a file by the place they change, in the order of the places."""
    plain = _what_counts(source)
    places: dict[tuple[int, int, str], list[Mutant]] = {}
    seen: dict[str, list[str]] = {}
    changes = [*_library_mutants(source), *_joining_mutants(source)]
    for line, column, operator, changed in sorted(changes, key=lambda change: change[:3]):
        try:
            if _what_counts(changed) == plain:
                continue
        except SyntaxError:
            continue
        diff = _diff(source, changed)
        alike = seen.setdefault(diff, [])
        if changed in alike:
            continue
        # Equal lines of a file have equal changes; they are told apart by their number.
        alike.append(changed)
        id = _digest(f"{file}\n{diff}\n{len(alike)}")[:10]
        places.setdefault((line, column, operator.split("_")[0]), []).append(
            Mutant(id, file, line, operator, diff, changed)
        )
    return list(places.values())


def drawn(number: int, seed: int, files: Sequence[str]) -> list[Mutant]:
    """One mutant of each of `number` places, by files and in each by lines.

    The lot is a digest of the change: code that is written elsewhere in the files leaves most of the draw as it was.
    """

    def lot(mutant: Mutant) -> str:
        return _digest(f"{seed} {mutant.id}")

    places = [place for file in files for place in mutants_of(file, (ROOT / file).read_text(encoding="utf-8"))]
    # The lowest lot of a place would make places with many mutants likelier: another one says which places are drawn.
    chosen = sorted((min(place, key=lot) for place in places), key=lambda mutant: _digest(lot(mutant)))[:number]
    return sorted(chosen, key=lambda mutant: (files.index(mutant.file), mutant.line, mutant.operator))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _library_mutants(source: str) -> Iterator[tuple[int, int, str, str]]:
    """(line, column, operator, changed source) of every change that Cosmic Ray knows."""
    from cosmic_ray.ast import ast_nodes, get_ast  # type: ignore[import-not-found, unused-ignore]
    from cosmic_ray.mutating import mutate_code  # type: ignore[import-not-found, unused-ignore]
    from cosmic_ray.operators.provider import OperatorProvider  # type: ignore[import-not-found, unused-ignore]

    provider = OperatorProvider()
    for name in provider:
        if name in LEFT_OUT or ("BinaryOperator" in name and any(part in name for part in NO_ARITHMETIC)):
            continue
        operator = provider[name]()
        positions = [place for node in ast_nodes(get_ast(source)) for place in operator.mutation_positions(node)]
        for occurrence, (start, _) in enumerate(positions):
            changed = mutate_code(source, operator, occurrence)
            if changed is not None:
                yield start[0], start[1], name, changed


def _joining_mutants(source: str) -> Iterator[tuple[int, int, str, str]]:
    """What goes wrong where functions are joined: arguments exchanged or left out, a step or a call forgotten."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            plain = [arg for arg in node.args if not isinstance(arg, ast.Starred)]
            for one, other in itertools.pairwise(plain):
                first, second = (ast.get_source_segment(source, arg) or "" for arg in (one, other))
                edited = _edited(source, (other, first), (one, second))
                yield one.lineno, one.col_offset, f"Swap_{first}_{second}", edited
            for keyword in node.keywords:
                if keyword.arg is not None:
                    yield keyword.lineno, keyword.col_offset, f"DropKeyword_{keyword.arg}", _without(source, keyword)
            if isinstance(node.func, ast.Attribute) and not node.args and not node.keywords:
                kept = ast.get_source_segment(source, node.func.value) or ""
                yield node.lineno, node.end_col_offset or 0, f"DropCall_{node.func.attr}", _edited(source, (node, kept))
        # A documentation text is an expression too, and doesn't count.
        elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            yield node.lineno, node.col_offset, "DropStatement", _edited(source, (node, "pass"))


def _edited(source: str, *edits: tuple[ast.expr | ast.stmt | ast.keyword, str]) -> str:
    """The source with nodes replaced by texts; the last node first."""
    data = source.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node, text in edits:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        data = data[:begin] + text.encode() + data[end:]
    return data.decode()


def _without(source: str, keyword: ast.keyword) -> str:
    """The source without a keyword argument and the comma before or after it."""
    marked = _edited(source, (keyword, "\0"))
    before, after = marked.split("\0")
    if after.lstrip().startswith(","):
        return before + after.lstrip()[1:].lstrip()
    return before.rstrip().removesuffix(",") + after


class _WithoutWords(ast.NodeTransformer):
    """A tree without what mutants must not be made of: annotations and texts."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        self.generic_visit(node)
        node.annotation = ast.Constant(None)
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Constant:
        return ast.Constant("")

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant("") if isinstance(node.value, str) and " " in node.value else node


def _what_counts(source: str) -> str:
    return ast.dump(_WithoutWords().visit(ast.parse(source)))


def _diff(source: str, changed: str) -> str:
    lines = difflib.unified_diff(source.splitlines(), changed.splitlines(), lineterm="", n=0)
    return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


# Trying them


@contextlib.contextmanager
def copied_tree() -> Iterator[Path]:
    """A copy of what git knows or would know of the tree, that mutants are written into."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout.decode().split("\0")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        tree = Path(name)
        for path in filter(None, names):
            if (ROOT / path).is_file():
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / path, tree / path)
        yield tree


def tried(tree: Path, file: str, source: str, marked: str, timeout_s: float) -> tuple[str, float]:
    """(outcome, seconds) of the tests of a file with that source in its place."""
    kept = (tree / file).read_bytes()
    began_s = time.monotonic()
    try:
        _written(tree / file, source.encode())
        status = _forked(tree, ["-m", marked, *TESTS[file]], timeout_s)
    finally:
        _written(tree / file, kept)
    seconds = time.monotonic() - began_s
    return {None: "timeout", 0: "survived"}.get(status, "killed"), round(seconds, 1)


def _written(path: Path, data: bytes) -> None:
    """The file as asked, and no compiled one of before, which could look as new."""
    path.write_bytes(data)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def _forked(tree: Path, arguments: Sequence[str], timeout_s: float) -> int | None:
    """The status of pytest in a fork of this process, or None where it took too long."""
    child = os.fork()
    if child == 0:
        _run_tests(tree, arguments)
    until_s = time.monotonic() + timeout_s
    for limit_s, sent in ((until_s, signal.SIGINT), (until_s + 20, signal.SIGKILL)):
        while time.monotonic() < limit_s:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status) if sent == signal.SIGINT else None
            time.sleep(0.05)
        # A first, polite signal lets pytest end the database and the processes that its tests started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, sent)
    os.waitpid(child, 0)
    return None


def _run_tests(tree: Path, arguments: Sequence[str]) -> None:
    """Become a run of pytest in the tree; never returns."""
    status: int = 70
    try:
        os.setsid()
        os.chdir(tree)
        sys.path[:] = [str(tree), *(path for path in sys.path if Path(path or ".").resolve() != ROOT)]
        os.environ["PYTHONPATH"] = str(tree)
        with (tree / "tests.log").open("w") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        import pytest

        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments])
    finally:
        os._exit(int(status))


def main() -> int:
    """Try the mutants, list the survivors; 1 where too many survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="*", default=list(TESTS), choices=list(TESTS), metavar="FILE")
    parser.add_argument("--slow", action="store_true", help="with the tests marked slow as well")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--out", type=Path, help="what was found, a JSON object a line; what it has isn't run again")
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every Nth, from the Ith on"
    )
    parser.add_argument("--again", action="store_true", help="run again what survived in --out")
    args = parser.parse_args()
    mutants = drawn(args.number, args.seed, args.files)
    if args.list:
        for mutant in mutants:
            print(f"{mutant.id} {mutant.file}:{mutant.line} {mutant.operator}\n{mutant.diff}")
        return 0
    known = _known(args.out)
    todo = [m for m in mutants if m.id not in known or (args.again and known[m.id].outcome == "survived")]
    first, step = args.part
    for found in _all_tried(todo[first::step], ALL if args.slow else QUICK):
        known[found.id] = found
        if args.out:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(found)) + "\n")
        print(f"{found.outcome:9}{found.seconds:6.1f} s  {found.id} {found.file}:{found.line} {found.operator}")
        sys.stdout.flush()
    known |= _known(args.out)
    return _summed_up([known[mutant.id] for mutant in mutants if mutant.id in known])


def _known(path: Path | None) -> dict[str, Found]:
    if path is None or not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {found.id: found for found in (Found(**json.loads(line)) for line in lines)}


def _all_tried(mutants: Sequence[Mutant], marked: str) -> Iterator[Found]:
    # Read when torch is loaded: in a fork, threads that were there before it are gone.
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in PRELOADED:
        importlib.import_module(name)
    limits: dict[str, float] = {}
    with copied_tree() as tree:
        for mutant in mutants:
            if mutant.file not in limits:
                outcome, seconds = tried(tree, mutant.file, (tree / mutant.file).read_text("utf-8"), marked, 1800)
                if outcome != "survived":
                    log = (tree / "tests.log").read_text(encoding="utf-8")
                    raise SystemExit(f"The tests of {mutant.file} fail without a mutant:\n{log[-3000:]}")
                print(f"tests of {mutant.file}: {seconds} s without a mutant", flush=True)
                limits[mutant.file] = 30 + 4 * seconds
            outcome, seconds = tried(tree, mutant.file, mutant.source, marked, limits[mutant.file])
            yield Found(mutant.id, mutant.file, mutant.line, mutant.operator, mutant.diff, outcome, seconds)


def _summed_up(found: Sequence[Found]) -> int:
    survived = [one for one in found if one.outcome == "survived"]
    open_ = [one for one in survived if one.id not in EQUIVALENT]
    for one in survived:
        why = EQUIVALENT.get(one.id)
        print(f"\n{one.id} {one.file}:{one.line} {one.operator}{f' (equivalent: {why})' if why else ''}\n{one.diff}")
    counted = len(found) - (len(survived) - len(open_))
    share = len(open_) / max(1, counted)
    print(
        f"\n{len(found)} mutants, {len(survived)} survived, {len(survived) - len(open_)} of them equivalent: "
        f"{share:.1%} of the others survive (below {MOST_SURVIVORS:.0%} wanted)"
    )
    return int(share >= MOST_SURVIVORS)


EQUIVALENT: dict[str, str] = {
    "15bb50855f": "AdamW in one kernel or in several: the same formula, apart by rounding and time",
    "67577d31f6": "under no_grad nothing has a gradient that detach could take away",
    "e9062c9d77": "every step sets the rate of every group before it is used",
    "9443ddd4d6": "set_to_none is what zero_grad does by default",
    "d5f83589d3": "the larger of two numbers, in either order",
    "91068803c9": "only where all steps warm up, and then no step gets there",
    "4a22b12a08": "tokens of one forward pass on a GPU: the sums are the same, apart by rounding",
    "7481ebabfd": "nothing writes into a standing; the type checker holds that, too",
    "a83e2a7dbe": "conditions that are joined by and, in either order",
    "58f9ef9c8b": "numbers in a jsonb column sort as numbers",
}
"""By id: mutants that compute what the code computes, each with its reason."""


if __name__ == "__main__":
    sys.exit(main())
