"""Proxies of the environment: used for what is elsewhere, never for this machine, and no reason to crash."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from orchestrator.errors import ConfigError
from orchestrator.http_shared.proxies import is_loopback, mend_for_prefect, proxy_for, spare_loopback
from tests.paths import PROJECT_ROOT
from tests.running import running

NOBODY = "http://127.0.0.1:9"
# What people have in their environments: desktops' `socks://`, ranges, addresses in brackets, names that are none.
PROXIES = (
    {"HTTP_PROXY": NOBODY},
    {"http_proxy": "127.0.0.1:9", "https_proxy": "127.0.0.1:9"},
    {"ALL_PROXY": "socks5://127.0.0.1:9"},
    {"all_proxy": "socks5h://user:secret@127.0.0.1:9"},
    {"ALL_PROXY": "socks://127.0.0.1:9/"},
    {"ALL_PROXY": "socks4://127.0.0.1:9", "http_proxy": NOBODY},
    {"HTTP_PROXY": "http://[::1", "HTTPS_PROXY": "ftp://proxy"},
    {"HTTP_PROXY": NOBODY, "NO_PROXY": "fd00::/8,2001:db8::/32,[::1],[::1]:4200,10.0.0.0/8,.example.com"},
    {"HTTP_PROXY": NOBODY, "NO_PROXY": "example.com", "no_proxy": "other.example.com fe80::/10"},
    {"NO_PROXY": "[fd00::]/8"},
    {"HTTP_PROXY": NOBODY, "no_proxy": "müller.example,http://[::1"},
    {"HTTP_PROXY": NOBODY, "NO_PROXY": "*"},
    {"HTTP_PROXY": ""},
    {},
)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without proxies."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = FastAPI()
    app.add_api_route("/api/health", lambda: True)
    with running(app) as url:
        yield url


@pytest.mark.parametrize("environment", PROXIES)
def test_a_client_that_reads_the_environment_starts_and_reaches_this_machine(
    clean: pytest.MonkeyPatch, url: str, environment: dict[str, str]
) -> None:
    environ = dict(environment)
    mend_for_prefect(environ)
    for name, value in environ.items():
        clean.setenv(name, value)
    assert httpx.get(f"{url}/api/health", timeout=5).json() is True
    assert httpx.get(f"{url.replace('127.0.0.1', 'localhost')}/api/health", timeout=5).json() is True
    again = dict(environ)
    mend_for_prefect(again)
    assert again == environ


def test_what_can_be_read_of_the_environment_stays() -> None:
    environ = {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.0/8, .example.com fd00::/8,[fd00::1]"}
    as_it_was = dict(environ)
    mend_for_prefect(environ)
    told = "10.0.0.0/8,.example.com,fd00::1,localhost,127.0.0.1,::1"
    assert environ == {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": told, "no_proxy": told}
    spare_loopback(as_it_was)
    assert as_it_was["NO_PROXY"] == "10.0.0.0/8,.example.com,fd00::/8,[fd00::1],localhost,127.0.0.1,::1"
    untouched: dict[str, str] = {"PATH": "/bin"}
    mend_for_prefect(untouched)
    assert untouched == {"PATH": "/bin"}


def test_an_address_of_this_machine_at_which_prefect_listens_is_spared() -> None:
    environ = {"HTTP_PROXY": NOBODY, "PREFECT_API_URL": "http://127.0.0.5:4200/api"}
    spare_loopback(environ)
    assert environ["NO_PROXY"].split(",") == ["localhost", "127.0.0.1", "::1", "127.0.0.5"]
    environ = {"HTTP_PROXY": NOBODY, "PREFECT_API_URL": "https://prefect.example.com/api"}
    spare_loopback(environ)
    assert "prefect.example.com" not in environ["NO_PROXY"]


def test_prefects_own_client_reaches_the_server_of_this_machine(url: str) -> None:
    program = (
        "import flows, os\nfrom prefect.client.orchestration import get_client\n"
        "with get_client(sync_client=True) as client: print(repr(client.api_healthcheck()))"
    )
    environment = {
        "ALL_PROXY": "socks4://127.0.0.1:9",
        "HTTP_PROXY": NOBODY,
        "NO_PROXY": "fd00::/8,[::1]",
        "PREFECT_API_URL": f"{url}/api",
        "PYTHONPATH": str(PROJECT_ROOT),
    }
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr


@pytest.mark.parametrize(
    ("url", "spared", "proxy"),
    [
        ("https://models.example.com/v1", "", "http://secure:1"),
        ("http://models.example.com/v1", "", "http://plain:2"),
        ("http://models.example.com/v1", "example.com", None),
        ("http://models.example.com/v1", ".example.com,other", None),
        ("http://models.example.com:8000/v1", "*.example.com", None),
        ("http://models.example.com/v1", "els.example.com", "http://plain:2"),
        ("http://models.example.com/v1", "*", None),
        ("http://models.example.com:8000/v1", "models.example.com:8000", None),
        ("http://10.1.2.3/v1", "10.0.0.0/8", None),
        ("http://11.1.2.3/v1", "10.0.0.0/8", "http://plain:2"),
        ("http://[fd12::1]/v1", "fd00::/8", None),
        ("http://[fd12::1]/v1", "[fd00::]/8", None),
        ("http://[fd12::1]:80/v1", "[fd12::1]:80", None),
        ("http://[2001:db8::1]/v1", "fd00::/8,[::1]", "http://plain:2"),
        ("http://localhost:1/v1", "", None),
        ("http://127.3.2.1/v1", "", None),
        ("http://[::1]:1/v1", "", None),
        ("http://[::ffff:127.0.0.1]:1/v1", "", None),
    ],
)
def test_the_environment_says_which_proxy_leads_to_a_url(
    clean: pytest.MonkeyPatch, url: str, spared: str, proxy: str | None
) -> None:
    clean.setenv("HTTPS_PROXY", "http://secure:1")
    clean.setenv("http_proxy", "plain:2")
    clean.setenv("NO_PROXY", spared)
    assert proxy_for(url) == proxy


def test_socks_is_a_proxy_too_and_what_is_none_is_said(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("ALL_PROXY", "socks://127.0.0.1:1080")
    assert proxy_for("https://models.example.com/v1") == "socks5://127.0.0.1:1080"
    clean.setenv("ALL_PROXY", "socks4://user:secret@127.0.0.1:1080")
    with pytest.raises(ConfigError, match=r"proxy for models.example.com is socks4://…; expected http") as refused:
        proxy_for("https://models.example.com/v1")
    assert "secret" not in str(refused.value)
    assert proxy_for("http://127.0.0.1:8000/v1") is None


def test_names_of_this_machine() -> None:
    assert all(map(is_loopback, ("localhost", "LOCALHOST.", "x.localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]")))
    assert not any(map(is_loopback, ("localhost.example.com", "10.0.0.1", "fd00::1", "", "0.0.0.0")))


def test_no_client_of_ours_reads_proxies_from_the_environment() -> None:
    makes = {"Client", "AsyncClient", "get", "post", "put", "request", "stream"}
    found = []
    for folder in ("orchestrator", "flows", "models", "db", "benchmarks", "docs"):
        for path in sorted((PROJECT_ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                if ast.unparse(node.func.value) == "httpx" and node.func.attr in makes:
                    told = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    found.append((path.name, node.lineno, told.get("trust_env")))
    assert len(found) > 8
    assert [where for where in found if where[2] != "False"] == []
