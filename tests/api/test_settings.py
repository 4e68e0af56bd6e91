"""The settings of a connection, and the ones that are rejected before anything is sent."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from airflow.providers.common.compat.sdk import BaseHook, Connection
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_runa.api.settings import PLAYGROUND, PRODUCTION, RunaConfigurationError, RunaSettings
from airflow_provider_runa.placement.identity import normalize_environment
from tests.support.frames import assert_no_secrets

PRODUCTION_KEY, PLAYGROUND_KEY = "wgpublic.secret-5542", "XXpublic.secret-5542"


def settings(password: str | None = PLAYGROUND_KEY, host: str | None = None, **values: Any) -> RunaSettings:
    extra = values.pop("extra", None)
    connection = Connection(
        conn_id="money",
        conn_type="runa",
        password=password,
        host=host,
        extra=json.dumps(extra) if isinstance(extra, dict) else extra,
        **values,
    )
    return RunaSettings.from_connection(connection)


@pytest.mark.parametrize(
    ("key", "environment", "base_url"),
    [
        (PRODUCTION_KEY, "production", PRODUCTION),
        (PLAYGROUND_KEY, "playground", PLAYGROUND),
        ("xxpublic.secret", "playground", PLAYGROUND),
    ],
)
def test_the_key_determines_the_environment(key: str, environment: str, base_url: str) -> None:
    found = settings(key)
    assert (found.environment, found.base_url) == (environment, base_url)


@pytest.mark.parametrize(
    ("host", "base_url"),
    [
        ("playground.runa.io", PLAYGROUND),
        ("https://playground.runa.io/v2/", PLAYGROUND),
        ("https://PLAYGROUND.runa.io", PLAYGROUND),
        ("https://playground.runa.io:443/v2", PLAYGROUND),
        ("https://playground.runa.io./v2", PLAYGROUND),
        ("http://127.0.0.1:8765/v2", "http://127.0.0.1:8765/v2"),
        ("http://localhost:8765", "http://localhost:8765/v2"),
        ("http://127.0.0.1:80", "http://127.0.0.1/v2"),
        ("http://[::1]:8765/v2", "http://[::1]:8765/v2"),
        ("https://proxy.example.com/runa", "https://proxy.example.com/runa"),
        ("https://playground\u3002runa\u3002io/v2", PLAYGROUND),
        ("https://playground\uff61runa\uff0eio/v2", PLAYGROUND),
        ("\uff50\uff4c\uff41\uff59ground.runa.io", PLAYGROUND),
        ("HTTPS://Playground.Runa.IO./v2//"[:-1], PLAYGROUND),
        ("https://bücher.example/v2", "https://xn--bcher-kva.example/v2"),
        ("https://XN--BCHER-KVA.example/v2", "https://xn--bcher-kva.example/v2"),
        ("http://[0:0::1]:8765/v2", "http://[::1]:8765/v2"),
    ],
)
def test_a_host_is_taken_in_any_spelling_and_has_one(host: str, base_url: str) -> None:
    """The base URL is a part of an order's identity: a second spelling would be a second order."""
    assert settings(host=host).base_url == base_url


@pytest.mark.parametrize("host", [None, "http://127.0.0.1:8765/v2"])
def test_a_port_of_zero_is_none(host: str | None) -> None:
    """It is what Airflow 3.3.1 and 3.3.2 need for their Test button; no second identity may come of it."""
    assert settings(host=host, port=0) == settings(host=host)


def test_a_connection_uri_is_read_as_its_json_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MONEY", "runa://:XXpublic.secret@127.0.0.1:8765/http")
    from_uri = BaseHook.get_connection("money")
    assert RunaSettings.from_connection(from_uri).base_url == "http://127.0.0.1:8765/v2"


def test_extras_have_defaults_and_are_read() -> None:
    default = settings()
    assert (default.api_version, default.timeout, default.orders_per_minute) == ("2024-02-05", 30.0, 300)
    given = settings(extra={"api_version": "2025-01-01", "timeout": "5", "orders_per_minute": 60})
    assert (given.api_version, given.timeout, given.orders_per_minute) == ("2025-01-01", 5.0, 60)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"password": None}, "the API key is missing"),
        ({"password": "   "}, "the API key is missing"),
        ({"password": "zzpublic.secret-5542"}, "neither with wg"),
        ({"password": "XXpublic….secret-5542"}, "contains characters that are not allowed in a key"),
        ({"password": "XXpublic.\nsecret-5542"}, "contains characters that are not allowed in a key"),
        (
            {"password": PRODUCTION_KEY, "host": "playground.runa.io"},
            "belongs to production, but the host is playground",
        ),
        ({"password": PLAYGROUND_KEY, "host": "https://api.runa.io/v2"}, "belongs to playground, but the host is api"),
        ({"host": "http://api.example.com/v2"}, "http is allowed for this machine only"),
        ({"host": "http://10.0.0.7/v2"}, "http is allowed for this machine only"),
        ({"host": "http://localhost.example.com"}, "http is allowed for this machine only"),
        ({"host": "ftp://playground.runa.io"}, "must be a base URL"),
        ({"host": "https://user@playground.runa.io"}, "must be a base URL"),
        ({"host": "https://:password@playground.runa.io"}, "must be a base URL"),
        ({"host": "https://playground.runa.io/v3"}, "the base URL of playground.runa.io is https://.*/v2, not"),
        ({"host": "https://playground.runa.io:8443/v2"}, "the base URL of playground.runa.io is https://.*/v2, not"),
        (
            {"password": PLAYGROUND_KEY, "host": "https://api.runa.io.:443"},
            "belongs to playground, but the host is api",
        ),
        ({"host": "https://playground.runa.io/./v2"}, "must be a base URL"),
        ({"host": "https://playground.runa.io/x/../v2"}, "must be a base URL"),
        ({"host": "https://playground.runa.io//v2"}, "must be a base URL"),
        ({"host": "https://playground.runa.io/%76%32"}, "must be a base URL"),
        ({"host": "https://playground%2Eruna.io/v2"}, "must be a base URL"),
        ({"host": "https://playground..runa.io/v2"}, "must be a base URL"),
        ({"host": "https://play\u200bground.runa.io/v2"}, "must be a base URL"),
        ({"host": "https://play ground.runa.io/v2"}, "must be a base URL"),
        ({"host": "https://gate\tway.example.com[/v2"}, "must be a base URL"),
        ({"host": "https://[::1/v2"}, "must be a base URL"),
        ({"host": "https://127.1/v2"}, "must be a base URL"),
        ({"host": "https://2130706433/v2"}, "must be a base URL"),
        ({"host": "https://0x7f.0.0.0x1/v2"}, "must be a base URL"),
        ({"host": "https://gateway.example.com:port/v2"}, "must be a base URL"),
        ({"host": "https://gateway.example.com:99999/v2"}, "must be a base URL"),
        ({"host": "gateway.example.com", "port": 99999}, "must be a base URL"),
        ({"host": f"https://gateway.example.com:{PLAYGROUND_KEY}/v2"}, "must be a base URL"),
        ({"host": f"https://{PLAYGROUND_KEY}@gateway.example.com/v2"}, "must be a base URL"),
        ({"host": f"https://playground.runa.io/{PLAYGROUND_KEY}"}, "the base URL of playground.runa.io is"),
        ({"host": f"{PLAYGROUND_KEY}://playground.runa.io"}, "must be a base URL"),
        ({"extra": "no json"}, "is not a JSON object"),
        ({"extra": "[1]"}, "is not a JSON object"),
        ({"extra": {"api_version": "latest"}}, "api_version must be a date such as 2024-02-05"),
        ({"extra": {"timeout": -1}}, "timeout must be a positive number"),
        ({"extra": {"timeout": "soon"}}, "timeout must be a positive number"),
        ({"extra": {"orders_per_minute": 0}}, "orders_per_minute must be a positive number"),
    ],
)
def test_invalid_settings_are_rejected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RunaConfigurationError, match=message) as caught:
        settings(**values)
    assert "'money'" in str(caught.value)
    assert "secret-5542" not in str(caught.value)


def test_settings_do_not_show_the_key() -> None:
    assert "secret-5542" not in repr(settings())


@pytest.mark.parametrize(("extra", "name"), [({}, None), ({"deployment": ""}, None), ({"deployment": None}, None)])
def test_a_deployment_has_no_name_by_default(extra: dict[str, Any], name: str | None) -> None:
    assert settings(extra=extra).deployment is name


def test_a_deployment_has_a_name_that_the_client_does_not_need() -> None:
    found = settings(extra={"deployment": "blue-2.eu"})
    assert found.deployment == "blue-2.eu"
    assert "deployment" not in found.client_arguments()


@pytest.mark.parametrize("name", ["Blue", "blue ", "-blue", "b" * 41, "none", "null", 7, ["blue"], "bl\u00fce", "a\nb"])
def test_a_deployment_has_one_spelling(name: Any) -> None:
    """The name is a part of an order's identity: a second spelling would be a second order."""
    with pytest.raises(RunaConfigurationError, match="deployment must be a name"):
        settings(extra={"deployment": name})


@pytest.mark.parametrize(
    "values",
    [
        {"password": "zzpublic.secret-5542"},
        {"host": "https://user:secret-5542@api.example.com"},
        {"host": "https://secret-5542@"},
        {"extra": {"timeout": "secret-5542"}},
        {"extra": {"api_version": "secret-5542"}},
        {"extra": {"deployment": "Secret-5542"}},
    ],
)
def test_an_error_and_its_frames_show_no_secret(values: dict[str, Any]) -> None:
    with pytest.raises(RunaConfigurationError) as caught:
        settings(**values)
    assert_no_secrets(caught.value, ["ecret-5542"])


@pytest.mark.parametrize(
    "host", [None, "https://api.runa.io/v2", "https://gateway.example.com/runa", "http://127.0.0.1"]
)
@pytest.mark.parametrize("key", [PRODUCTION_KEY, "WGpublic.another"])
def test_a_key_of_production_is_production_behind_any_host(host: str | None, key: str) -> None:
    """Otherwise everything would be paid again through a gateway."""
    found = settings(key, host)
    assert (found.identity_environment, found.environment) == (PRODUCTION, "production")
    assert normalize_environment(found.identity_environment) == PRODUCTION
    if host is not None and "runa.io" not in host:
        assert found.base_url != PRODUCTION, "requests are sent to the gateway"


@pytest.mark.parametrize("host", [None, "https://gateway.example.com/runa", "http://127.0.0.1:8765/v2"])
def test_any_other_key_is_named_by_its_host(host: str | None) -> None:
    found = settings(PLAYGROUND_KEY, host)
    assert found.identity_environment == found.base_url


HOSTS = st.lists(
    st.sampled_from(
        [*"abz09.-_~%@:/?#[]\\ \t", "\u3002", "\uff0e", "\uff41", "ß", "İ", "ü", "xn--", "..", "0x", "127", "::1"]
    ),
    max_size=9,
).map("".join)


@given(host=HOSTS | st.text(max_size=9), port=st.none() | st.integers(0, 10**5))
def test_any_host_is_rejected_in_one_line_or_has_one_spelling(host: str, port: int | None) -> None:
    """What is accepted, httpx can send to, and reading it again changes nothing."""
    reason = ""
    try:
        found = settings(host=f"https://{host}", port=port)
    except RunaConfigurationError as error:
        reason = str(error)
    if reason:
        assert len(reason.splitlines()) == 1
        return
    url = httpx.URL(found.base_url)
    assert str(url) == found.base_url
    assert found.base_url.isascii()
    assert settings(host=found.base_url).base_url == found.base_url
    assert normalize_environment(found.base_url) == found.base_url


def test_no_frame_of_an_error_shows_the_key() -> None:
    with pytest.raises(RunaConfigurationError) as caught:
        settings(host=f"https://playground.runa.io/{PLAYGROUND_KEY}")
    assert "secret-5542" not in str(caught.value)
    assert "***" in str(caught.value)
