"""What `auto` means on this machine, and that a fingerprint says on what an artifact was made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.instance import devices
from orchestrator.instance.devices import resolved
from orchestrator.stages.context import requested_of
from orchestrator.store import ledger


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    resolved.cache_clear()


def interpreter(folder: Path, said: str) -> str:
    """A program in the place of Python, which answers so."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{said}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_device_that_is_named_is_taken_as_it_is(device: str) -> None:
    assert resolved(device, "/no/such/python") == device


def test_without_a_driver_it_is_the_cpu_and_no_torch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "GPU_NODES", ("/no/such/node",))
    assert resolved("auto", "/no/such/python") == "cpu"


@pytest.mark.parametrize(
    ("said", "found"),
    [("echo True", "cuda"), ("echo a warning; echo True", "cuda"), ("echo False", "cpu"), ("exit 1", "cpu")],
)
def test_where_there_is_a_driver_the_torch_of_the_jobs_is_asked(
    said: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "GPU_NODES", ("/no/such/node", str(tmp_path)))
    assert resolved("auto", interpreter(tmp_path, said)) == found


def test_this_interpreters_torch_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(devices, "GPU_NODES", (str(tmp_path),))
    assert resolved("auto", sys.executable) == ("cuda" if torch.cuda.is_available() else "cpu")


def test_what_a_gpu_makes_has_a_fingerprint_of_its_own_and_a_cpus_is_that_of_before() -> None:
    made = {device: requested_of("train_policy", 3, {"epochs": 2}, device) for device in ("cpu", "cuda")}
    assert made["cpu"] == {"job": "train_policy", "seed": 3, "settings": {"epochs": 2}}
    assert made["cuda"] == made["cpu"] | {"device": "cuda"}
    fingerprints = {ledger.fingerprint("policy", requested, {}) for requested in made.values()}
    assert len(fingerprints) == 2
