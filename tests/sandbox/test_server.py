"""The sandbox as a process, over real sockets: its command line, its controls, and its worst manners."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.sandbox.account import order
from tests.support.sandbox import API_KEY, RunningSandbox, start_sandbox

COMMAND = [sys.executable, "-m", "airflow_provider_runa.sandbox"]


@pytest.fixture(scope="module")
def shared() -> Iterator[RunningSandbox]:
    with start_sandbox("--in-progress-status", "102") as running:
        yield running


@pytest.fixture
def sandbox(shared: RunningSandbox) -> RunningSandbox:
    shared.reset()
    return shared


def post(sandbox: RunningSandbox, key: str = "one", body: Any = None) -> httpx.Response:
    headers = {"X-Api-Key": sandbox.api_key, "X-Idempotency-Key": key}
    return httpx.post(f"{sandbox.url}/order", json=body or order(), headers=headers, timeout=10)


def get(sandbox: RunningSandbox, path: str) -> httpx.Response:
    return httpx.get(f"{sandbox.url}{path}", headers={"X-Api-Key": sandbox.api_key}, timeout=10)


def raw(sandbox: RunningSandbox, key: str = "one") -> bytes:
    """Send an order and return every byte that comes back until the connection is closed."""
    request = httpx.Request(
        "POST",
        f"{sandbox.url}/order",
        json=order(),
        headers={"X-Api-Key": sandbox.api_key, "X-Idempotency-Key": key, "Connection": "close"},
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    address = urlsplit(sandbox.url)
    received = b""
    with socket.create_connection((address.hostname, address.port), 10) as connection:
        connection.sendall(f"POST /v2/order HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        try:
            while data := connection.recv(65536):
                received += data
        except ConnectionResetError:
            pass
    return received


@contextmanager
def running(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command; yield its process and the first line it prints."""
    command = [*COMMAND, "--port", "0", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Where the tests run in the background of a shell, Ctrl-C is ignored, and a child inherits that.
    with subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            process.kill()


# -- serving ----------------------------------------------------------------------------------------------------------


def test_an_order_over_the_wire(sandbox: RunningSandbox) -> None:
    answer = post(sandbox)
    assert (answer.status_code, answer.headers["content-type"]) == (202, "application/json")
    assert answer.headers["x-api-version"] == "2024-02-05"
    order_id = answer.json()["id"]
    sandbox.advance(10)
    shown = get(sandbox, f"/order/{order_id}").json()
    assert shown["status"] == "COMPLETED"
    assert shown["items"][0]["payout"]["url"].startswith(sandbox.url.removesuffix("/v2") + "/claim/")


def test_names_in_a_path_may_be_quoted(sandbox: RunningSandbox) -> None:
    assert get(sandbox, "/product/AMZ%2DUS").json()["code"] == "AMZ-US"
    assert get(sandbox, "/order/a%2Fb").json()["message"] == "There is no such order."


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/nowhere"), ("GET", "/order/"), ("PUT", "/order"), ("DELETE", "/order/O-1"), ("GET", ""), ("GET", "/")],
)
def test_what_is_not_there_has_an_error_of_runas_form(sandbox: RunningSandbox, method: str, path: str) -> None:
    answer = httpx.request(method, sandbox.url + path, headers={"X-Api-Key": API_KEY})
    assert (answer.status_code, answer.json()["type"]) == (404, "not_found")
    assert httpx.request(method, sandbox.url + path).status_code == 401


def test_repeated_parameters_reach_the_engine(sandbox: RunningSandbox) -> None:
    query = "?countries_redeemable_in=GB&countries_redeemable_in=DE"
    assert len(get(sandbox, f"/product{query}").json()["catalog"]) == 2


# -- misbehaving ------------------------------------------------------------------------------------------------------


def test_dropped_before_the_order_is_stored(sandbox: RunningSandbox) -> None:
    sandbox.faults({"kind": "drop_before"})
    assert raw(sandbox) == b""
    assert sandbox.orders() == []
    assert post(sandbox).status_code == 202


def test_dropped_after_the_order_was_stored(sandbox: RunningSandbox) -> None:
    sandbox.faults({"kind": "drop_after"})
    assert raw(sandbox) == b""
    (stored,) = sandbox.orders()
    assert post(sandbox).json()["id"] == stored["id"]
    assert len(sandbox.orders()) == 1


def is_reset(sandbox: RunningSandbox) -> bool:
    """Send an order and return whether the connection is reset."""
    request = httpx.Request("POST", f"{sandbox.url}/order", json=order(), headers={"X-Idempotency-Key": "one"})
    request.headers["X-Api-Key"] = sandbox.api_key
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    address = urlsplit(sandbox.url)
    with socket.create_connection((address.hostname, address.port), 10) as connection:
        connection.sendall(f"POST /v2/order HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        try:
            assert connection.recv(65536) == b""
        except ConnectionResetError:
            return True
    return False


@pytest.mark.parametrize("kind", ["drop_before", "drop_after"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_is_closed_or_reset(sandbox: RunningSandbox, kind: str, reset: bool) -> None:
    sandbox.faults({"kind": kind, "reset": reset})
    assert is_reset(sandbox) == reset
    assert len(sandbox.orders()) == (kind == "drop_after")
    assert post(sandbox).status_code == 202
    assert len(sandbox.orders()) == 1


def test_half_an_answer(sandbox: RunningSandbox) -> None:
    sandbox.faults({"kind": "half_answer"})
    head, _, body = raw(sandbox).partition(b"\r\n\r\n")
    promised = int(re.search(rb"Content-Length: (\d+)", head)[1])  # type: ignore[index]
    assert head.startswith(b"HTTP/1.1 202 Accepted\r\n")
    assert 0 < len(body) < promised
    (stored,) = sandbox.orders()
    assert post(sandbox).json()["id"] == stored["id"]


def test_half_of_an_answer_whose_status_has_no_name(sandbox: RunningSandbox) -> None:
    sandbox.faults({"kind": "half_answer"}, {"kind": "status_after", "status": 520})
    assert raw(sandbox).startswith(b"HTTP/1.1 520 ")


def test_a_102_comes_with_a_body(sandbox: RunningSandbox) -> None:
    sandbox.faults({"kind": "latency", "seconds": 60})
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{sandbox.url}/order",
            json=order(),
            headers={"X-Api-Key": API_KEY, "X-Idempotency-Key": "one"},
            timeout=0.3,
        )
    answer = raw(sandbox)
    assert answer.startswith(b"HTTP/1.1 102 Processing\r\n")
    assert answer.endswith(b"}")
    assert b'"idempotency_in_progress"' in answer
    sandbox.advance(60)
    assert post(sandbox).status_code == 202
    assert len(sandbox.orders()) == 1


def test_latency_delays_the_answer_and_nobody_else(sandbox: RunningSandbox) -> None:
    sandbox.faults({"kind": "latency", "seconds": 0.3, "method": "GET", "path": "/ping"})
    began = time.monotonic()
    assert get(sandbox, "/ping").status_code == 200
    assert 0.3 <= time.monotonic() - began < 2


def test_a_gateways_page_is_no_json(sandbox: RunningSandbox) -> None:
    sandbox.faults({"kind": "status", "status": 502, "typed": False})
    answer = post(sandbox)
    assert (answer.status_code, answer.headers["content-type"]) == (502, "text/html")


# -- controls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "explode"},
        {"kind": "status", "stauts": 500},
        {"kind": "status", "status": "soon"},
        {"kind": "status", "status": 42},
        {"kind": "status", "count": "all"},
        {"kind": "latency", "seconds": -1},
        "drop_after",
    ],
)
def test_a_fault_that_cannot_be_is_refused_and_breaks_nothing(sandbox: RunningSandbox, fault: Any) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        sandbox.faults(fault)
    assert post(sandbox).status_code == 202


def test_faults_can_be_cleared(sandbox: RunningSandbox) -> None:
    sandbox.faults({"kind": "drop_after", "count": 9})
    sandbox.clear_faults()
    assert post(sandbox).status_code == 202


@pytest.mark.parametrize(
    "lie",
    [
        {"kind": "explode"},
        {"kind": "order_status"},
        {"kind": "order_status", "valeu": "ON_HOLD"},
        {"kind": "order_status", "value": 5},
        {"kind": "list_circle", "item": 0},
        "list_circle",
    ],
)
def test_a_lie_that_cannot_be_is_refused_and_changes_nothing(sandbox: RunningSandbox, lie: Any) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        sandbox.lies(lie)
    post(sandbox)
    assert len(get(sandbox, "/order").json()["items"]) == 1


def test_lies_are_switched_on_and_off(sandbox: RunningSandbox) -> None:
    order_id = post(sandbox).json()["id"]
    sandbox.advance(10)
    truth = get(sandbox, f"/order/{order_id}").json()
    sandbox.lies({"kind": "item_missing"}, {"kind": "list_without", "value": "pagination"})
    assert get(sandbox, f"/order/{order_id}").json() == truth | {"items": []}
    assert get(sandbox, "/order").json().keys() == {"items"}
    sandbox.clear_lies()
    assert get(sandbox, f"/order/{order_id}").json() == truth


def test_an_order_of_somebody_else_is_added(sandbox: RunningSandbox) -> None:
    theirs = sandbox.add_order(order(description="Spring"), "PROCESSING")
    assert get(sandbox, f"/order/{theirs}").json()["status"] == "PROCESSING"
    sandbox.set_status(theirs, "COMPLETED")
    assert get(sandbox, "/order").json()["items"][0]["description"] == "Spring"
    (row,) = sandbox.orders()
    assert (row["id"], row["idempotency_key"]) == (theirs, "")
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        sandbox.add_order(order(reference="x"))
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        sandbox.add_order(order(), "ON_HOLD")
    assert len(sandbox.orders()) == 1


def test_a_payout_is_claimed(sandbox: RunningSandbox) -> None:
    order_id = post(sandbox).json()["id"]
    sandbox.advance(10)
    sandbox.set_payout(order_id, "ACTIVE", expiry_date="2030-01-01T01:00:00+01:00")
    sandbox.set_payout(order_id, "CLAIMED")
    payout = get(sandbox, f"/order/{order_id}").json()["items"][0]["payout"]
    assert (payout["status"], payout["expiry_date"]) == ("CLAIMED", "2030-01-01T00:00:00Z")
    for wrong in ({"item": 1}, {"item": -1}):
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            sandbox.set_payout(order_id, "CLAIMED", **wrong)
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        sandbox.set_status("O-1", "FAILED")
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        sandbox.set_payout(order_id, "FROZEN")
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        sandbox.set_payout(order_id, "EXPIRED", expiry_date="2030-01-01T00:00:00")


def test_controls_are_about_the_account_of_their_key(sandbox: RunningSandbox) -> None:
    other = sandbox.add_account("XXother.secret")
    ours, theirs = post(sandbox).json()["id"], post(other).json()["id"]
    assert [[row["id"] for row in one.orders()] for one in (sandbox, other)] == [[ours], [theirs]]
    assert get(sandbox, f"/order/{theirs}").status_code == 404
    other.faults({"kind": "status", "status": 503, "method": "GET", "path": "/ping", "count": None})
    other.balance("USD", "5")
    other.lies({"kind": "list_without", "value": "items"})
    assert [get(one, "/ping").status_code for one in (sandbox, other)] == [200, 503]
    assert ["items" in get(one, "/order").json() for one in (sandbox, other)] == [True, False]
    assert (post(sandbox, "two").status_code, post(other, "two").status_code) == (202, 400)
    other.advance(10)
    assert [one.stats()["orders"] for one in (sandbox, other)] == [{"COMPLETED": 2}, {"COMPLETED": 1}]
    other.reset()
    assert [len(one.orders()) for one in (sandbox, other)] == [2, 0]
    sandbox.reset()
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        other.orders()
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        sandbox.add_account(API_KEY)


def test_the_controls_show_neither_recipients_nor_links(sandbox: RunningSandbox) -> None:
    by_mail = {"type": "EMAIL", "email_address": "ada-7311@example.com"}
    body = order(description="Spring", metadata={"run": "1"})
    body["items"][0]["distribution_method"] = by_mail
    post(sandbox, body=body)
    sandbox.advance(10)
    (shown,) = sandbox.orders()
    assert (shown["status"], shown["description"], shown["metadata"]) == ("COMPLETED", "Spring", {"run": "1"})
    assert (shown["face_value"], shown["currency"], shown["items"]) == ("10.00", "USD", 1)
    assert "ada-7311" not in str(shown) + str(sandbox.stats())
    assert "/claim/" not in str(shown) + str(sandbox.stats())


@pytest.mark.parametrize(
    ("control", "body"),
    [
        ("balance", {"currency": "usd", "balance": "5"}),
        ("balance", {"currency": "USD", "balance": "-5"}),
        ("balance", {"currency": "USD", "balance": "NaN"}),
        ("advance", {"seconds": 1e300}),
        ("advance", {"seconds": -1}),
        ("advance", {"seconds": 1, "minutes": 1}),
    ],
)
def test_a_control_that_would_break_answers_is_refused(sandbox: RunningSandbox, control: str, body: Any) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        sandbox._control("POST", control, body)


def test_the_balance_can_be_set(sandbox: RunningSandbox) -> None:
    sandbox.balance("USD", "9.99")
    assert post(sandbox).json()["type"] == "insufficient_funds"


# -- the command ------------------------------------------------------------------------------------------------------


def test_options_reach_the_engine() -> None:
    options = ["--api-key", "XXone.secret", "--api-key", "XXtwo.secret", "--balance", "USD=20", "--balance", "EUR=5"]
    options += ["--orders-per-minute", "3", "--processing-delay", "0", "--fail-orders", "1", "--latency", "0.05"]
    with start_sandbox(*options) as sandbox:
        assert get(sandbox, "/ping").status_code == 401
        for sandbox.api_key in ("XXone.secret", "XXtwo.secret"):
            assert get(sandbox, "/ping").status_code == 200
        assert get(sandbox, "/balance").json() == [
            {"currency": "EUR", "balance": "5.00"},
            {"currency": "USD", "balance": "20.00"},
        ]
        statuses = [post(sandbox, key).status_code for key in ("one", "two", "three", "four")]
        assert statuses == [202, 202, 202, 429]
        assert sandbox.stats()["orders"] == {"FAILED": 1, "COMPLETED": 2}
        began = time.monotonic()
        get(sandbox, "/ping")
        assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_file_survives_the_process(tmp_path: Path, how: int) -> None:
    database = str(tmp_path / "runa.db")
    with running("--database", database) as (process, line):
        first = RunningSandbox(line.split()[-1])
        order_id = post(first).json()["id"]
        process.send_signal(how)
        process.wait(10)
    with start_sandbox("--database", database) as again:
        assert post(again).json()["id"] == order_id
        assert [one["id"] for one in again.orders()] == [order_id]
        assert get(again, "/balance?currency=USD").json()["balance"] == "999990.00"


def test_memory_does_not() -> None:
    with start_sandbox() as first:
        post(first)
    with start_sandbox() as again:
        assert again.orders() == []


def test_it_listens_on_this_machine_only() -> None:
    with running() as (process, line):
        assert re.fullmatch(r"Runa sandbox on http://127\.0\.0\.1:\d+/v2\n", line)
        process.terminate()
        assert process.communicate(timeout=10)[1] == ""


def test_it_prints_the_connection_for_airflow(tmp_path: Path) -> None:
    with running("--api-key", "XXown.it's") as (process, line):
        assert process.stdout is not None
        export = process.stdout.readline()
    done = subprocess.run(
        ["sh", "-c", f'{export}\nprintf %s "$AIRFLOW_CONN_RUNA_DEFAULT"'], capture_output=True, check=True, text=True
    )
    assert export.startswith("export AIRFLOW_CONN_RUNA_DEFAULT='{")
    assert json.loads(done.stdout) == {"conn_type": "runa", "password": "XXown.it's", "host": line.split()[-1]}


@pytest.mark.parametrize("logs", [True, False])
def test_it_logs_requests_without_secrets(logs: bool) -> None:
    with running(*["--log-requests"] * logs) as (process, line):
        url = line.split()[-1]
        httpx.get(f"{url}/balance?currency=SECRET", headers={"X-Api-Key": "XXsandbox.secret"})
        httpx.get(f"{url}/orders")
        process.terminate()
        said = [text for text in process.communicate(timeout=10)[0].splitlines() if not text.startswith("export ")]
    assert [words.split()[:2] for words in said] == ([["GET", "/v2/balance"], ["GET", "/v2/orders"]] if logs else [])
    assert "SECRET" not in "".join(said)
    assert not logs or said[1].endswith(" 401")


@pytest.mark.parametrize(("host", "warns"), [("0.0.0.0", True), ("localhost", False)])
def test_it_warns_where_others_can_reach_it(host: str, warns: bool) -> None:
    with running("--host", host) as (process, line):
        assert line.startswith(f"Runa sandbox on http://{host}:")
        process.terminate()
        said = process.communicate(timeout=10)[1]
    assert said == (f"Warning: {host} can be reached from other machines.\n" if warns else "")


def test_an_address_of_version_6(sandbox: RunningSandbox) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with start_sandbox("--host", "::1") as running_there:
        assert running_there.url.startswith("http://[::1]:")
        assert get(running_there, "/ping").status_code == 200


def test_it_stops_without_a_word_as_soon_as_it_listens() -> None:
    with running() as (process, line):
        assert line.startswith("Runa sandbox on ")
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=10)[1]
    assert said == ""
    assert process.returncode == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_without_a_word_while_an_answer_is_slow(how: int) -> None:
    with running("--latency", "60") as (process, line):
        address = urlsplit(line.split()[-1])
        with socket.create_connection((address.hostname, address.port), 10) as connection:
            connection.sendall(b"GET /v2/ping HTTP/1.1\r\nHost: runa\r\n\r\n")
            time.sleep(0.2)
            process.send_signal(how)
            said = process.communicate(timeout=10)[1]
    assert "Traceback" not in said
    assert process.returncode == (0 if how == signal.SIGINT else -how)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--balance", "USD"], "'USD' is not like USD=1000"),
        (["--balance", "usd=5"], "'usd=5' is not like USD=1000"),
        (["--balance", "USD=NaN"], "'USD=NaN' is not like USD=1000"),
        (["--balance", "USD=-5"], "'USD=-5' is not like USD=1000"),
        (["--latency", "-1"], "'-1' is not a number of seconds"),
        (["--processing-delay", "nan"], "'nan' is not a number of seconds"),
        (["--in-progress-status", "500"], "invalid choice"),
        (["--port", "99999"], "The sandbox cannot start: "),
        (["--port", "{used}"], "port {used} is in use. Is another sandbox running? --port 0 takes"),
        (
            ["--port", "0", "--database", "/nonexistent/runa.db"],
            "The sandbox cannot start: unable to open database file",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(sandbox: RunningSandbox, options: list[str], said: str) -> None:
    used = str(urlsplit(sandbox.url).port)
    command = [*COMMAND, *[option.format(used=used) for option in options]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode in (1, 2)
    assert said.format(used=used) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_help_names_every_option() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, timeout=10, check=True)
    for option in ("--host", "--port", "--database", "--api-key", "--processing-delay", "--balance", "--latency"):
        assert option in done.stdout
