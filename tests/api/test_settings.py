"""The settings of a connection, and the ones that are rejected before anything is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseHook, Connection

from airflow_provider_runa.api.settings import PLAYGROUND, PRODUCTION, RunaConfigurationError, RunaSettings
from tests.support.local_variables import assert_no_secrets

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
