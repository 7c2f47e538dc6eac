"""The proxies that the environment names: never for this machine's own addresses, and never a crash.

Clients of ours ask `proxy_for` and leave the environment alone. Prefect's read it themselves, and fail as they are made
where it names what httpx can't use: `mend_for_prefect`. Other libraries need to know this machine: `spare_loopback`.
Every command begins with the last, so that httpx is imported where it is needed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from orchestrator.errors import ConfigError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_NO_PROXY = ("NO_PROXY", "no_proxy")
# Desktops write `socks://`; what speaks SOCKS speaks version 5.
_OTHER_NAMES = {"socks": "socks5"}


@cache
def tls() -> ssl.SSLContext:
    """What says whom to trust: `SSL_CERT_FILE` and `SSL_CERT_DIR` hold though a client reads nothing else there."""
    import httpx

    return httpx.create_ssl_context()


def is_loopback(host: str) -> bool:
    """Whether the host is this machine."""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return address is not None and (mapped or address).is_loopback


def proxy_for(url: str) -> str | None:
    """The proxy by which the environment wants the URL to be reached; None for the direct way.

    Raises:
        ConfigError: it names a proxy that can't be used; says which, and what can.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    proxies = getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy is None or is_loopback(host) or any(_spared(host, one) for one in _entries(proxies.get("no", ""))):
        return None
    usable = _usable(proxy)
    if usable is None:
        # A proxy's URL may hold a password.
        kind = proxy.partition("://")[0] if "://" in proxy else "http"
        raise ConfigError(
            f"The environment's proxy for {host} is {kind}://…; expected http, https or socks5. Set HTTPS_PROXY to one "
            "of these, or name the host in NO_PROXY."
        )
    return usable


def spare_loopback(environ: MutableMapping[str, str]) -> None:
    """Name the addresses of this machine in `NO_PROXY`, for libraries that read the environment themselves."""
    told = _no_proxy(environ)
    if not told and not _proxies_named(environ):
        return
    own = urlsplit(environ.get("PREFECT_API_URL", "")).hostname or ""
    spared = [*told, *_LOOPBACK, *([own] if is_loopback(own) else [])]
    for name in _NO_PROXY:
        environ[name] = ",".join(dict.fromkeys(spared))


def mend_for_prefect(environ: MutableMapping[str, str]) -> None:
    """The same, and take away what stops a client of httpx as it is made, whether that would be needed or not.

    That is a proxy that httpx can't use, and what it can't read of `NO_PROXY` (ranges of IPv6 addresses).
    """
    for name in _proxies_named(environ):
        usable = _usable(environ[name])
        if usable is None:
            del environ[name]
        else:
            environ[name] = usable
    readable = [*_readable(_no_proxy(environ))]
    for name in _NO_PROXY:
        if environ.pop(name, "") and readable:
            environ[name] = ",".join(readable)
    spare_loopback(environ)


def _proxies_named(environ: Mapping[str, str]) -> list[str]:
    return [name for name in environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")]


def _no_proxy(environ: Mapping[str, str]) -> list[str]:
    # Where both are there, the small letters are heeded.
    return _entries(next((environ[name] for name in reversed(_NO_PROXY) if name in environ), ""))


def _usable(proxy: str) -> str | None:
    """The proxy's URL as httpx takes it; None where it can't."""
    import httpx

    kind, separator, rest = proxy.strip().rpartition("://")
    url = f"{_OTHER_NAMES.get(kind.lower(), kind.lower()) or 'http'}://{rest}" if separator else f"http://{rest}"
    with contextlib.suppress(ValueError, ImportError, httpx.InvalidURL):
        httpx.HTTPTransport(proxy=url, verify=False, trust_env=False).close()
        return url
    return None


def _entries(told: str) -> list[str]:
    return [entry for entry in told.replace(",", " ").split() if entry]


def _readable(entries: Iterable[str]) -> Iterator[str]:
    """What of `NO_PROXY` httpx can read."""
    import httpx

    for entry in entries:
        if _address(entry.strip("[]")) is not None:
            yield entry.strip("[]")
            continue
        with contextlib.suppress(httpx.InvalidURL):
            httpx.URL(entry if "://" in entry else f"all://*{entry}")
            yield entry


def _spared(host: str, entry: str) -> bool:
    """Whether an entry of `NO_PROXY` means the host: a name and what is below it, an address, or a range of them."""
    entry = (urlsplit(entry).netloc if "://" in entry else entry).lower()
    if entry == "*":
        return True
    address, network = _address(host), _network(entry)
    if address is not None and network is not None:
        return address in network
    if network is None and not entry.startswith("["):
        entry = entry.partition(":")[0]
    name = entry.lstrip("*").lstrip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """An address or range, brackets and a port after them aside."""
    bracketed = text.startswith("[")
    inside, _, after = text.lstrip("[").partition("]")
    with contextlib.suppress(ValueError):
        length = f"/{after.partition('/')[2]}" if "/" in after else ""
        return ipaddress.ip_network(inside + length if bracketed else text, strict=False)
    return None
