"""Mutants of a few lines: which there are, and that texts, annotations and equal sources are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import mutants

SOURCE = '''"""A few lines."""

from __future__ import annotations


def difference(left: float, right: float | None, *, scale: float = 1.0) -> float:
    """What is left."""
    note("nothing is taken", end="")
    return f(left, right, scale=scale).detach()
'''


def joined() -> dict[str, str]:
    """Changed lines by operator."""
    found = {}
    for _, _, operator, changed in mutants._joining_mutants(SOURCE):
        [(before, after)] = [
            pair for pair in zip(SOURCE.splitlines(), changed.splitlines(), strict=True) if pair[0] != pair[1]
        ]
        assert before != after
        found[operator] = after.strip()
    return found


def test_what_goes_wrong_where_functions_are_joined() -> None:
    assert joined() == {
        "DropStatement": "pass",
        "DropKeyword_end": 'note("nothing is taken")',
        "DropCall_detach": "return f(left, right, scale=scale)",
        "Swap_left_right": "return f(right, left, scale=scale).detach()",
        "DropKeyword_scale": "return f(left, right).detach()",
    }


def test_annotations_and_texts_do_not_count() -> None:
    plain = mutants._what_counts(SOURCE)
    assert mutants._what_counts(SOURCE.replace("float | None", "float & None")) == plain
    assert mutants._what_counts(SOURCE.replace("-> float", "-> int")) == plain
    assert mutants._what_counts(SOURCE.replace("nothing is taken", "all is taken")) == plain
    assert mutants._what_counts(SOURCE.replace("scale=scale", "scale=left")) != plain
    assert mutants._what_counts(SOURCE.replace("1.0", "2.0")) != plain


def test_a_mutant_meets_the_tests_of_its_file_and_the_tree_is_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tested.py").write_text("def twice(x):\n    return 2 * x\n")
    (tmp_path / "test_tested.py").write_text(
        "from tested import twice\n\n\ndef test_twice():\n    assert twice(2) == 4\n"
    )
    monkeypatch.setattr(mutants, "TESTS", {"tested.py": ("test_tested.py",)})
    outcomes = [
        mutants.tried(tmp_path, "tested.py", f"def twice(x):\n    return {body}\n", "not slow", 60)[0]
        for body in ("2 * x", "2 + x", "3 * x")
    ]
    # 2 + 2 is 4, too: the test is no match for that one.
    assert outcomes == ["survived", "survived", "killed"]
    assert (tmp_path / "tested.py").read_text() == "def twice(x):\n    return 2 * x\n"


def test_a_draw_keeps_to_its_places_and_to_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ours alone: Cosmic Ray is installed by `make mutants`.
    monkeypatch.setattr(mutants, "_library_mutants", lambda source: iter(()))
    files = ["orchestrator/data/freeze.py"]
    first = mutants.drawn(5, 0, files)
    assert len({(mutant.line, mutant.operator) for mutant in first}) == 5
    assert [mutant.id for mutant in mutants.drawn(5, 0, files)] == [mutant.id for mutant in first]
    # More of them are the same ones and others; another seed draws others.
    assert {mutant.id for mutant in first} < {mutant.id for mutant in mutants.drawn(9, 0, files)}
    assert {mutant.id for mutant in first} != {mutant.id for mutant in mutants.drawn(5, 1, files)}
