"""The example of what Prometheus reads and of its alerts: checked by Prometheus' own tool, against a real server."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.orm import Session

from orchestrator.http_shared.metrics import Metrics
from tests.orchestrator.serving.tiny_policies import Policies, Served, put_live
from tests.paths import PROJECT_ROOT
from tests.waiting import wait_for

EXAMPLE = PROJECT_ROOT / "examples" / "prometheus"
NAME = re.compile(r"\b(?:policy_server|feedback_app)_\w+")

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*words: str) -> str:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    for file in EXAMPLE.glob("*.yml"):
        shutil.copy(file, tmp_path)
    (tmp_path / "admin-token").write_text("secret")
    promtool("check", "config", str(tmp_path / "prometheus.yml"))


@needs_promtool
def test_each_alert_comes_when_it_should_and_not_before(tmp_path: Path) -> None:
    cases = (Path(__file__).parent / "alerts_test.yml").read_text()
    (tmp_path / "test.yml").write_text(cases.replace("RULES", str(EXAMPLE / "alerts.yml")))
    promtool("test", "rules", str(tmp_path / "test.yml"))


def test_what_the_alerts_name_is_what_the_servers_tell(served: Served, live: str) -> None:
    served.chat(seed=1, max_tokens=4)
    text = served.client.get("/metrics").text + Metrics("feedback_app").answer().body.decode()
    families = list(text_string_to_metric_families(text))
    told = {sample.name for family in families for sample in family.samples}
    # A histogram that has counted nothing yet has no samples.
    told |= {f"{family.name}{end}" for family in families if family.type == "histogram" for end in ("_bucket",)}
    asked = set(NAME.findall((EXAMPLE / "alerts.yml").read_text()))
    assert asked <= told | {"policy_server_snapshot_refusals_total"}, asked - told


def test_a_snapshot_s_replies_are_counted_under_its_name(served: Served, live: str) -> None:
    tokens = [served.chat(seed=seed, max_tokens=10).json()["usage"]["completion_tokens"] for seed in range(3)]
    text = served.client.get("/metrics").text
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    name = ("snapshot", live.removeprefix("sha256:")[:12])
    assert found[("policy_server_snapshot_reply_tokens_sum", (name,))] == sum(tokens)
    assert found[("policy_server_snapshot_reply_seconds_count", (name,))] == 3
    assert (
        sum(value for (metric, labels), value in found.items() if metric == "policy_server_snapshot_replies_total") == 3
    )
    assert found[("policy_server_standing", (name, ("standing", "live")))] == 1


def test_after_a_swap_the_one_before_keeps_its_place(
    served: Served, live: str, database: Callable[[], Session], policies: Policies
) -> None:
    def standing() -> dict[str, str]:
        families = text_string_to_metric_families(served.client.get("/metrics").text)
        [family] = [family for family in families if family.name == "policy_server_standing"]
        return {sample.labels["standing"]: sample.labels["snapshot"] for sample in family.samples}

    first, second = (digest.removeprefix("sha256:")[:12] for digest in policies.digests[:2])
    assert standing() == {"live": first}
    put_live(database, policies.digests[1])
    wait_for("the second to be live", lambda: standing() == {"live": second, "before": first})
    # There and back again: the one before is the other one, not itself.
    put_live(database, policies.digests[0])
    wait_for("the first to be live again", lambda: standing() == {"live": first, "before": second})
