"""The settings of a connection to Runa, validated: from an Airflow connection, or from its parts without Airflow."""

from __future__ import annotations

import ipaddress
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from airflow_provider_runa.api.errors import RunaConfigurationError

DEFAULT_CONN_ID = "runa_default"
DEFAULT_API_VERSION = "2024-02-05"
DEFAULT_TIMEOUT = 30.0
DEFAULT_ORDERS_PER_MINUTE = 300

PRODUCTION = "https://api.runa.io/v2"
PLAYGROUND = "https://playground.runa.io/v2"

# Prefix of an API key (in lower case) -> the environment it belongs to (Runa's guide on API keys).
_ENVIRONMENTS = {"wg": PRODUCTION, "xx": PLAYGROUND}

# Scheme -> its default port.
_PORTS = {"https": 443, "http": 80}

# The path of a base URL, in the one spelling that is accepted: no dot segments, no empty ones, no escapes.
_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)*/?")


@dataclass(frozen=True)
class RunaSettings:
    """The validated settings of a ``runa`` connection.

    :param api_key: the API key; never shown.
    :param base_url: base URL of the API, in one canonical spelling per host: where requests are sent.
    :param api_version: dated version of the API. Default: ``2024-02-05``.
    :param timeout: how long one request may take, in seconds. Default: 30.
    :param orders_per_minute: the account's limit of order requests per minute. Default: 300.
    :param deployment: name of the Airflow installation, if several with the same DAGs use one account. It is part of
        the identity of orders without an ``order_key``. Default: the account has only one.
    """

    api_key: str = field(repr=False)
    base_url: str
    api_version: str = DEFAULT_API_VERSION
    timeout: float = DEFAULT_TIMEOUT
    orders_per_minute: int = DEFAULT_ORDERS_PER_MINUTE
    deployment: str | None = None

    @classmethod
    def from_connection(cls, connection: Any) -> RunaSettings:
        """Return the settings of an Airflow connection.

        :param connection: the Airflow connection.
        :raises RunaConfigurationError: if it cannot be used.
        """
        if connection.conn_type not in (None, "", "runa"):
            kind, name = connection.conn_type, connection.conn_id
            del connection
            raise RunaConfigurationError(
                f"Connection {name!r}: has the type {kind!r}; give a connection of type 'runa'"
            )
        try:
            return cls.read(
                f"Connection {connection.conn_id!r}",
                SecretStr(connection.password or ""),
                host=connection.host,
                schema=connection.schema,
                port=connection.port,
                extra=connection.extra,
            )
        except RunaConfigurationError as error:
            problem = str(error)
        # A traceback may show local variables, and the text of a connection contains the password.
        del connection
        raise RunaConfigurationError(problem)

    @classmethod
    def read(
        cls,
        source: str,
        api_key: SecretStr,
        *,
        host: str | None = None,
        schema: str | None = None,
        port: int | None = None,
        extra: str | None = None,
    ) -> RunaSettings:
        """Return settings from the parts of a connection.

        :param source: where the parts come from, for the error message.
        :param api_key: the API key, wrapped, because a traceback may show local variables.
        :param host: base URL of the API, or its host. Default: the environment that the API key belongs to.
        :param schema: ``http`` or ``https``, if the host does not include it. Default: ``https``.
        :param port: port, if the host does not include it. Default: the port of the scheme.
        :param extra: further settings, as the text of a JSON object.
        :raises RunaConfigurationError: if the settings cannot be used.
        """
        try:
            api_key = _check_api_key(api_key)
            settings = _parse_extra(extra)
            return cls(
                api_key=api_key.get_secret_value(),
                base_url=_base_url(host, schema, port, _prefix(api_key.get_secret_value())),
                api_version=_api_version(settings),
                timeout=_positive(settings, "timeout", float, DEFAULT_TIMEOUT),
                orders_per_minute=_positive(settings, "orders_per_minute", int, DEFAULT_ORDERS_PER_MINUTE),
                deployment=_deployment(settings),
            )
        except ValueError as error:
            reason = _without_key(str(error), api_key)
        del host, extra  # a mistyped host may contain a password
        raise RunaConfigurationError(f"{source}: {reason}")

    def client_arguments(self) -> dict[str, Any]:
        """Return the arguments for :class:`~.client.RunaClient`."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "deployment"}

    @property
    def identity_environment(self) -> str:
        """The environment that is part of every order's identity, as a base URL.

        A key of production pays from production wherever its requests are sent, such as to an egress gateway. If the
        gateway's URL were part of the identity, every order would be placed again once the gateway is used. Any other
        key is named by where its requests are sent: one key may be used at several sandboxes.
        """
        return PRODUCTION if _ENVIRONMENTS.get(_prefix(self.api_key)) == PRODUCTION else self.base_url

    @property
    def environment(self) -> str:
        """``"production"``, ``"playground"``, or the base URL if it is neither."""
        known = {PRODUCTION: "production", PLAYGROUND: "playground"}
        return known.get(self.identity_environment, self.base_url)


def _check_api_key(api_key: SecretStr) -> SecretStr:
    key = SecretStr(api_key.get_secret_value().strip())
    if not key.get_secret_value():
        raise ValueError("the API key is missing; set it as the password.")
    if not re.fullmatch(r"[!-~]+", key.get_secret_value()):
        raise ValueError("the API key contains characters that are not allowed in a key; copy it again.")
    return key


def _prefix(api_key: str) -> str:
    """Return the part of an API key that names its environment."""
    return api_key[:2].lower()


def _without_key(text: str, api_key: SecretStr) -> str:
    """Return a text without the API key: it may have been entered into the field of the host."""
    key = api_key.get_secret_value().strip()
    for secret in (key, key.rpartition(".")[2]):
        if len(secret) > 3:
            text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)
    return text


def _base_url(host: str | None, schema: str | None, port: int | None, prefix: str) -> str:
    """Return the canonical base URL of the host, or without a host, of the environment that the key belongs to."""
    key_environment = _ENVIRONMENTS.get(prefix)
    host = (host or "").strip()
    if host:
        base_url = _normalize_url(host, schema, port)
        _check_environment(base_url, key_environment)
        return base_url
    if key_environment is None:
        raise ValueError("the API key starts neither with wg (production) nor with XX (playground); set the host.")
    return key_environment


def _normalize_url(host: str, schema: str | None, port: int | None) -> str:
    """Return the base URL of a host: with a scheme and a path, without a default port and a trailing slash."""
    if "://" not in host and schema not in (None, "", "http", "https"):
        raise ValueError(
            "a runa:// URI has no path; write its host as https%3A%2F%2Fapi.runa.io%2Fv2, or leave it out for Runa."
        )
    if "://" not in host:
        host = f"{schema or 'https'}://{host}"
    try:
        url = urlsplit(host)
        name = _normalize_host(url.hostname or "")
        port = url.port or port or _PORTS[url.scheme]
        is_base_url = 0 < port < 2**16 and _PATH.fullmatch(url.path) and not (url.query or url.fragment)
    except (ValueError, KeyError, httpx.InvalidURL):  # their texts may contain anything that was entered
        is_base_url = False
    if not is_base_url or "@" in url.netloc:
        raise ValueError("the host must be a base URL such as https://api.runa.io/v2.")
    if url.scheme == "http" and not _is_loopback(name):
        raise ValueError("http is allowed for this machine only; use https.")
    netloc = (f"[{name}]" if ":" in name else name) + (f":{port}" if port != _PORTS[url.scheme] else "")
    return f"{url.scheme}://{netloc}{url.path.rstrip('/') or '/v2'}"


def _normalize_host(host: str) -> str:
    """Return a host in its one spelling: in ASCII and lower case, without a dot at the end.

    The URL's parser, httpx and the resolver accept the same host in other spellings, such as full-width letters or an
    ideographic full stop. A second spelling must not be a second environment.

    :raises ValueError: if it is neither an IP address nor a name of letters, digits, hyphens and dots.
    :raises httpx.InvalidURL: if httpx cannot send requests there.
    """
    if ":" in host:
        return str(ipaddress.IPv6Address(host))  # rejects a zone, too
    host = unicodedata.normalize("NFKC", host).replace("\u3002", ".")
    name = httpx.URL(f"https://{host}").raw_host.decode().lower().removesuffix(".")
    if re.fullmatch(r"(0x[0-9a-f]*|[0-9]+)", name.rpartition(".")[2]):
        return str(ipaddress.IPv4Address(name))  # other spellings, such as 127.1, are rejected
    if not all(re.fullmatch(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?", label) for label in name.split(".")):
        raise ValueError("not a host")
    return name


def _check_environment(base_url: str, key_environment: str | None) -> None:
    """Check that a base URL at a host of Runa's is the one of its environment, and that the key belongs to it."""
    name = urlsplit(base_url).hostname
    environment = {urlsplit(known).hostname: known for known in _ENVIRONMENTS.values()}.get(name)
    if environment is None:
        return  # such as the sandbox: any key may be used there
    if key_environment not in (None, environment):
        kind = "production" if key_environment == PRODUCTION else "playground"
        raise ValueError(f"the API key belongs to {kind}, but the host is {name}.")
    if environment != base_url:
        raise ValueError(f"the base URL of {name} is {environment}, not {base_url}; leave the host empty.")


def _api_version(extra: Mapping[str, Any]) -> str:
    version = extra.get("api_version") or DEFAULT_API_VERSION
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(version)):
        raise ValueError(f"api_version must be a date such as {DEFAULT_API_VERSION}.")
    return str(version)


def _deployment(extra: Mapping[str, Any]) -> str | None:
    name = extra.get("deployment")
    if name in (None, ""):
        return None
    is_name = isinstance(name, str) and re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,39}", name)
    if not is_name or name in ("none", "null", "undefined"):  # of a template without a value
        raise ValueError("deployment must be a name of at most 40 small letters, digits, dots, dashes and underscores.")
    return str(name)


def _parse_extra(extra: str | None) -> Mapping[str, Any]:
    # Not Connection.extra_dejson: it registers values for masking, which blocks an event loop. Nothing here is secret.
    try:
        values = json.loads(extra or "{}")
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise ValueError("the extra is not a JSON object.")  # noqa: TRY004 - bad value, whatever its type
    return values


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _positive(extra: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = extra.get(name)
    if value in (None, ""):
        return default
    try:
        number = kind(value)
    except (TypeError, ValueError):
        number = 0
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} must be a positive number.")
    return number
