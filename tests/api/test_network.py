"""What the worker's environment sets: proxies, hosts that need none, and trusted certificates."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import certifi
import pytest

from airflow_provider_runa.api.client import AsyncRunaClient, RunaClient
from airflow_provider_runa.api.errors import RunaConfigurationError, RunaUnreachableError
from airflow_provider_runa.api.network import find_proxy, tls_context
from airflow_provider_runa.api.settings import RunaSettings
from airflow_provider_runa.hooks.runa import create_client
from tests.support.frames import assert_no_secrets
from tests.support.raw import http, start_raw

URL = "https://runa.example.com/v2"
SETTINGS = RunaSettings(api_key="XXsecret-4471", base_url=URL)  # type: ignore[arg-type]
DOCKER = "localhost,127.0.0.0/8,::1/128,[::1],*.local"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("SSL_CERT_"):
            monkeypatch.delenv(name)
    tls_context.cache_clear()
    yield
    tls_context.cache_clear()


@pytest.mark.parametrize("no_proxy", ["", DOCKER])
@pytest.mark.parametrize("kind", [RunaClient, AsyncRunaClient])
def test_requests_go_through_the_proxy_whatever_no_proxy_lists(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, kind: type[RunaClient] | type[AsyncRunaClient]
) -> None:
    with start_raw(http("403 Forbidden")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.removesuffix("/v2"))
        monkeypatch.setenv("NO_PROXY", no_proxy)

        async def aping() -> None:
            async with create_client(AsyncRunaClient, SETTINGS) as client:
                await client.ping(retry=False)

        def ping() -> None:
            asyncio.run(aping()) if kind is AsyncRunaClient else create_client(RunaClient, SETTINGS).ping(retry=False)

        with pytest.raises(RunaUnreachableError, match="ProxyError"):
            ping()
    assert [head[""] for head in proxy.heads()] == ["CONNECT runa.example.com:443 HTTP/1.1"]


@pytest.mark.parametrize("no_proxy", ["runa.example.com", ".example.com", "other.org,EXAMPLE.com", "*", f"{DOCKER},*"])
def test_hosts_in_no_proxy_are_reached_without_the_proxy(monkeypatch: pytest.MonkeyPatch, no_proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", "proxy.example.net:8080")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert find_proxy(URL) is None


def test_the_proxy_for_https_comes_before_the_one_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://other.example.net:1")
    monkeypatch.setenv("NO_PROXY", DOCKER)
    assert str(find_proxy(URL).url) == "http://other.example.net:1"  # type: ignore[union-attr]
    monkeypatch.setenv("https_proxy", "proxy.example.net:8080")
    assert str(find_proxy(URL).url) == "http://proxy.example.net:8080"  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("socks5://user:hunter2@proxy.example.net:1080", "socksio"),
        ("ftp://user:hunter2@proxy.example.net", "not the URL of a proxy"),
        ("http://user:hunter2@proxy.example.net:port", "not the URL of a proxy"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, proxy: str, said: str
) -> None:
    monkeypatch.setenv(name, proxy)
    monkeypatch.setattr("airflow_provider_runa.api.network.find_spec", lambda module: None)
    with pytest.raises(RunaConfigurationError, match=f"^{name} of .* {said}") as caught:
        create_client(RunaClient, SETTINGS)
    assert "\n" not in str(caught.value)
    assert_no_secrets(caught.value, ["hunter2", "secret-4471"], attributes=False)


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_certificates_that_are_missing_are_named_by_their_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv(name, str(tmp_path / "missing"))
    with pytest.raises(RunaConfigurationError, match=f"^{name} of .*missing") as caught:
        create_client(RunaClient, SETTINGS)
    assert "\n" not in str(caught.value)
    assert_no_secrets(caught.value, ["secret-4471"], attributes=False)


def test_a_file_without_certificates_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wrong.pem").write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "wrong.pem"))
    with pytest.raises(RunaConfigurationError, match=r"^SSL_CERT_FILE of .*wrong\.pem"):
        create_client(AsyncRunaClient, SETTINGS)


def test_certificates_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one = certifi.contents().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    (tmp_path / "ca.pem").write_text(one)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert len(tls_context().get_ca_certs()) == 1
    tls_context.cache_clear()
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path / 'missing'}{os.pathsep}{tmp_path}")
    assert tls_context() is tls_context()
