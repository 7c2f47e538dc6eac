"""The example configurations are ones that the product takes."""

import pytest

from orchestrator.config import load_config
from tests.paths import EXAMPLES


@pytest.mark.parametrize("name", ["local.toml", "hh.toml"])
def test_an_example_is_valid(name, monkeypatch, tmp_path):
    monkeypatch.setenv("ORCHESTRATOR_DATA", str(tmp_path))
    config = load_config(EXAMPLES / name)
    assert config.name in ("assistant", "hh")
