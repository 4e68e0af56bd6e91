"""RunaHook over real sockets: every method and its twin, the connection test, the connection form."""

from __future__ import annotations

import asyncio
import importlib.resources
import inspect
import json
import sys
import traceback
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from airflow_provider_runa.api.errors import RunaConfigurationError, RunaNotFoundError
from airflow_provider_runa.api.models import EstimateRequest, NewOrder
from airflow_provider_runa.get_provider_info import get_provider_info
from airflow_provider_runa.hooks.runa import RunaHook
from tests.support.airflow import redact
from tests.support.frames import assert_no_secrets
from tests.support.sandbox import API_KEY, RunningSandbox

ITEM = {
    "face_value": 10,
    "distribution_method": {"type": "EMAIL", "email_address": "ada@example.com"},
    "products": {"type": "SINGLE", "value": "AMZ-US"},
}
ESTIMATED = {name: ITEM[name] for name in ("face_value", "products")}
ORDER = NewOrder.build(currency="USD", items=[ITEM])


async def _all(rows: Any) -> Any:
    return [row async for row in rows] if hasattr(rows, "__aiter__") else await rows


def ask(twin: str, method: str, *args: Any, **kwargs: Any) -> Any:
    """Call a method, or its asynchronous twin; lists for iterators."""
    hook = RunaHook()
    if twin == "sync":
        try:
            answer = getattr(hook, method)(*args, **kwargs)
            return list(answer) if inspect.isgenerator(answer) else answer
        finally:
            hook.close()

    async def twin_of() -> Any:
        try:
            return await _all(getattr(hook, f"a{method}")(*args, **kwargs))
        finally:
            await hook.aclose()

    return asyncio.run(twin_of())


@pytest.mark.parametrize("twin", ["sync", "async"])
def test_every_endpoint_has_a_method_and_a_twin(runa: RunningSandbox, twin: str) -> None:
    assert ask(twin, "ping") is None
    placed = ask(twin, "create_order", ORDER, idempotency_key="one")
    assert ask(twin, "create_order", ORDER, idempotency_key="one").id == placed.id
    assert ask(twin, "create_order", ORDER, idempotency_key="two", execution_mode="sync").status == "COMPLETED"
    assert ask(twin, "get_order", placed.id).id == placed.id
    assert placed.id in [order.id for order in ask(twin, "list_orders")]
    assert ask(twin, "estimate_order", EstimateRequest.build(currency="USD", items=[ESTIMATED])).total_price > 0
    assert ask(twin, "get_balance", "USD").currency == "USD"
    assert "USD" in [balance.currency for balance in ask(twin, "get_balances")]
    codes = [product.code for product in ask(twin, "list_products", is_orderable=True)]
    assert ask(twin, "get_product", codes[0]).code == codes[0]
    assert "US" in ask(twin, "list_countries")
    assert ask(twin, "list_categories")


def test_every_twin_takes_the_same_arguments() -> None:
    for name, method in inspect.getmembers(RunaHook, inspect.isfunction):
        twin = getattr(RunaHook, f"a{name}", None)
        if twin is not None and not name.startswith("_"):
            ours, theirs = inspect.signature(method), inspect.signature(twin)
            assert list(ours.parameters.values()) == list(theirs.parameters.values()), name


def test_a_connection_that_works_passes_the_test(runa: RunningSandbox) -> None:
    assert RunaHook().test_connection() == (
        True,
        f"Runa answered at {runa.url}; the API key works.",
    )
    assert runa.stats()["requests"] == {"GET /ping": 1}


@pytest.mark.parametrize(
    ("connection", "message"),
    [
        ({"password": "XXwrong.secret-5542"}, "Runa rejected the API key at http"),
        ({"host": "http://127.0.0.1:9/v2"}, "Runa could not be reached at http://127.0.0.1:9/v2"),
        ({"password": ""}, "the API key is missing"),
    ],
)
def test_a_connection_that_does_not_work_fails_the_test_with_the_reason(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch, connection: dict[str, str], message: str
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    values = json.loads(runa.connection) | connection
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", json.dumps(values))
    works, said = RunaHook().test_connection()
    assert not works
    assert message in said
    assert "secret" not in said.replace("API key", "")


def test_a_connection_is_tested_once(runa: RunningSandbox) -> None:
    runa.faults({"kind": "status", "method": "GET", "path": "/ping", "status": 503, "count": 9})
    works, said = RunaHook().test_connection()
    assert not works
    assert said.startswith(f"Runa answered at {runa.url}, but the ping failed: 503")
    assert runa.stats()["requests"] == {"GET /ping": 1}


def test_a_hook_has_one_client_however_many_tasks_of_a_loop_ask_for_it(runa: RunningSandbox) -> None:
    async def both() -> set[int]:
        hook = RunaHook()
        try:
            return {id(client) for client in await asyncio.gather(hook.aget_conn(), hook.aget_conn())}
        finally:
            await hook.aclose()

    assert len(asyncio.run(both())) == 1


def test_neither_hook_nor_client_show_the_key(runa: RunningSandbox) -> None:
    hook = RunaHook()
    with pytest.raises(RunaNotFoundError) as caught:
        hook.get_order("O-NONE")
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack
    shown = [str(frame.locals) for frame in frames if frame.filename != __file__]
    shown += [repr(hook), repr(vars(hook)), repr(hook.get_conn())]
    hook.close()
    assert not [text for text in shown if API_KEY in text]


def test_the_key_is_masked_once_the_connection_was_read(runa: RunningSandbox) -> None:
    RunaHook().get_settings()
    assert API_KEY not in str(redact(f"key {API_KEY}"))


def test_the_metadata_is_what_airflow_accepts() -> None:
    schema = importlib.resources.files("airflow") / "provider_info.schema.json"
    jsonschema.validate(get_provider_info(), json.loads(schema.read_text()))


def test_the_form_of_older_airflow_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow 3.1 replaces the form's libraries and knows only these names; others remove the connection type."""

    def field(label: str, *, default: Any, **_: Any) -> tuple[str, Any]:
        return label, default

    libraries: dict[str, dict[str, Any]] = {
        "flask_appbuilder": {},
        "flask_appbuilder.fieldwidgets": {"BS3TextFieldWidget": object},
        "flask_babel": {"lazy_gettext": str},
        "wtforms": {"StringField": field, "IntegerField": field},
        "wtforms.validators": {"Optional": object},
    }
    for name, values in libraries.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)

    connection_type = get_provider_info()["connection-types"][0]
    fields = connection_type["conn-fields"].items()
    expected = {name: (field["label"], field["schema"]["default"]) for name, field in fields}
    assert RunaHook.get_connection_form_widgets() == expected
    behaviour = {name.replace("-", "_"): value for name, value in connection_type["ui-field-behaviour"].items()}
    assert RunaHook.get_ui_field_behaviour() == behaviour
    assert set(behaviour) == {"hidden_fields", "relabeling", "placeholders"}


def test_both_forms_have_the_deployment() -> None:
    (connection_type,) = get_provider_info()["connection-types"][:1]
    assert connection_type["conn-fields"]["deployment"]["schema"] == {"type": ["string", "null"], "default": None}


@pytest.mark.parametrize("host", ["https://api..example.com/v2", "https://xn--/v2", "https://api.example.com:99999/v2"])
def test_a_host_that_httpx_does_not_accept_is_a_wrong_connection(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", json.dumps(json.loads(runa.connection) | {"host": host}))
    with pytest.raises(RunaConfigurationError) as caught:
        RunaHook().ping()
    assert_no_secrets(caught.value, [API_KEY], attributes=False)

    async def ping() -> None:
        await RunaHook().aping()

    with pytest.raises(RunaConfigurationError) as caught:
        asyncio.run(ping())
    assert_no_secrets(caught.value, [API_KEY], attributes=False)


def test_a_test_does_not_show_airflows_temporary_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_TMP_XYZ", '{"conn_type": "runa"}')
    assert RunaHook("tmp_xyz").test_connection() == (
        False,
        "The connection: the API key is missing; set it as the password.",
    )


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://:XXkey-12345@host", "has the type 'http'; give a connection of type 'runa'"),
        ("runa://:XXkey-12345@host/v2", "a runa:// URI has no path; write its host as https%3A"),
    ],
)
def test_a_connection_of_another_form_says_what_to_do(monkeypatch: pytest.MonkeyPatch, uri: str, message: str) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", uri)
    with pytest.raises(RunaConfigurationError, match=message):
        RunaHook("other").get_settings()
