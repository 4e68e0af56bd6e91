"""The way to Runa that the environment sets: a proxy, and the certificates that are trusted.

httpx reads the same variables, but fails on a ``NO_PROXY`` with an IPv6 network or brackets, as Docker Desktop and
OrbStack set it, and its errors do not name the variable.
"""

from __future__ import annotations

import functools
import os
import ssl
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from airflow_provider_runa.api.errors import RunaConfigurationError


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return the TLS context that all clients of this process share, because creating one blocks for about 20 ms.

    :raises RunaConfigurationError: if ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` names nothing that can be used.
    """
    name = next((name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)), None)
    if name is None:
        return httpx.create_ssl_context()
    path = os.environ[name]
    found = Path(path).is_file() if name == "SSL_CERT_FILE" else any(map(os.path.isdir, path.split(os.pathsep)))
    if found:
        try:
            return httpx.create_ssl_context()
        except OSError:  # also of the ssl module, for a file that is not in PEM form
            pass
    raise RunaConfigurationError(
        f"{name} of the worker's environment is {path!r}, from which no certificates can be read; "
        "correct it, or remove it to trust the usual authorities"
    )


def find_proxy(base_url: str) -> httpx.Proxy | None:
    """Return the proxy for requests to an API, ``None`` if they go straight to it.

    :param base_url: base URL of the API.
    :raises RunaConfigurationError: if the proxy that the environment names cannot be used.
    """
    proxies = getproxies()
    kind = next((kind for kind in ("https", "all") if proxies.get(kind)), None)
    everywhere = "*" in proxies.get("no", "").replace(" ", "").split(",")
    if kind is None or everywhere or proxy_bypass(urlsplit(base_url).netloc):
        return None
    try:
        proxy = _read_proxy(proxies[kind])
    except (ValueError, httpx.InvalidURL):
        problem = "is not the URL of a proxy, such as http://proxy.example.com:8080"
    else:
        if not proxy.url.scheme.startswith("socks") or find_spec("socksio"):
            return proxy
        problem = "names a SOCKS proxy, which needs the package socksio: install httpx[socks]"
    # The text shows neither the URL nor httpx's error: they may contain a password.
    names = [name for name in os.environ if name.lower() == f"{kind}_proxy"]
    raise RunaConfigurationError(f"{' or '.join(names) or f'The {kind} proxy'} of the worker's environment {problem}")


def _read_proxy(url: str) -> httpx.Proxy:
    return httpx.Proxy(url if "://" in url else f"http://{url}")
