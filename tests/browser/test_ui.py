"""What a person does and sees in Airflow's UI: connect, test, trigger, look. A real Airflow, a real browser.

The connection that the DAG uses is the one typed into the form. With ``RUNA_SCREENSHOTS`` (``make screenshots``) the
pictures of ``docs/ui.md`` are written to that folder.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from airflow_provider_runa.links.portal import PORTAL
from scripts.airflow_stack import AirflowStack, wait_until
from tests.support.chromium import MISSING, find_program, start_chromium
from tests.support.sandbox import RunningSandbox, start_sandbox

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

    Shoot = Callable[[str], None]

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent.parent
DAG_ID = "runa_create_then_sense"
API_KEY = "XXbrowser.api-key-secret-7719"
ADDRESS = "browser-recipient-4406@example.com"


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserContext]:
    pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: it is in the group `dev`")
    program = find_program()
    if program is None:
        pytest.skip(MISSING)
    with start_chromium(program) as context:
        yield context


@pytest.fixture(scope="module")
def sandbox() -> Iterator[RunningSandbox]:
    with start_sandbox("--api-key", API_KEY, "--processing-delay", "2") as running:
        yield running


@pytest.fixture(scope="module")
def airflow(browser: BrowserContext, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowStack]:
    """An Airflow that knows the DAG and no connection. After the browser, so that it is not started for a skip."""
    dags = tmp_path_factory.mktemp("dags")
    shutil.copy(ROOT / "example_dags" / f"{DAG_ID}.py", dags)
    with AirflowStack(tmp_path_factory.mktemp("airflow"), dags) as stack:
        wait_until(lambda: stack.api("GET", f"/dags/{DAG_ID}"), 60, f"DAG {DAG_ID} is parsed", stack.tails)
        yield stack
        stack.stop_component("triggerer", signal.SIGKILL)  # asked nicely, it takes 10 s


@pytest.fixture(scope="module")
def page(browser: BrowserContext) -> Page:
    return browser.new_page()


@pytest.fixture(scope="module")
def shoot(page: Page) -> Shoot:
    """Keep a picture of the page, if asked to."""
    folder = os.environ.get("RUNA_SCREENSHOTS")

    def keep(name: str) -> None:
        if folder:
            page.wait_for_timeout(500)  # for what moves
            page.screenshot(path=Path(folder) / f"{name}.png")

    return keep


@pytest.fixture(scope="module")
def connected(airflow: AirflowStack, sandbox: RunningSandbox, page: Page, shoot: Shoot) -> None:
    """Make the connection ``runa_default`` through the form."""
    page.goto(airflow.ui_url)
    page.get_by_role("button", name="Admin").click()
    page.get_by_role("menuitem", name="Connections").click()
    page.get_by_role("button", name="Add Connection").click()
    form = page.get_by_role("dialog")
    form.get_by_label("Connection ID").fill("runa_default")
    form.get_by_role("combobox", name="Connection Type").fill("Runa")
    page.get_by_role("option", name="Runa", exact=True).click()
    form.get_by_label("Base URL").fill(sandbox.url)
    form.get_by_label("API key").fill(API_KEY)
    form.get_by_label("Port").fill("0")
    shoot("connection-form")
    form.get_by_role("button", name="Save").click()
    page.get_by_text("Connection has been successfully created.").wait_for()


@pytest.fixture(scope="module")
def order_task(connected: None, airflow: AirflowStack, page: Page, shoot: Shoot) -> str:
    """Trigger the DAG, wait until it is green, and return the address of the task that ordered."""
    from playwright.sync_api import expect

    page.goto(f"{airflow.ui_url}/dags/{DAG_ID}")
    page.get_by_role("button", name="Trigger Dag").click()
    form = page.get_by_role("dialog")
    form.get_by_role("group").filter(has_text="email").get_by_role("textbox").fill(ADDRESS)
    form.get_by_role("button", name="Trigger", exact=True).click()
    page.wait_for_url("**/runs/manual__*")
    # Of the run. It is followed by itself; the table below may be left as it was a moment before the end.
    expect(page.get_by_test_id("state-badge").first).to_have_text("Success", timeout=90_000)
    page.reload()
    for task in ("order_reward", "wait_for_reward"):
        expect(page.get_by_role("row").filter(has_text=task).get_by_test_id("state-badge")).to_have_text("Success")
    shoot("green-run")
    page.get_by_role("table").get_by_role("link", name="order_reward").click()
    page.wait_for_url("**/tasks/order_reward")
    return page.url


@pytest.fixture(scope="module")
def payout_links(order_task: str, sandbox: RunningSandbox) -> list[str]:
    (order,) = sandbox.orders()
    answer = httpx.get(f"{sandbox.url}/order/{order['id']}", headers={"X-Api-Key": API_KEY})
    links = [item["payout"]["url"] for item in answer.raise_for_status().json()["items"]]
    assert len(links) == 1
    return links


def all_of(page: Page) -> str:
    """Return everything that a page holds: its source, its text and what is in its fields.

    Without white space, since the editor that shows JSON breaks long values into lines.
    """
    fields = page.locator("input, textarea").evaluate_all("fields => fields.map(field => field.value)")
    return "".join(" ".join([page.content(), page.locator("body").inner_text(), *fields]).split())


def test_the_connection_is_tested_and_its_key_is_not_shown(
    connected: None, airflow: AirflowStack, sandbox: RunningSandbox, page: Page, shoot: Shoot
) -> None:
    from playwright.sync_api import expect

    page.goto(f"{airflow.ui_url}/connections")
    with page.expect_response("**/connections/test") as answer:
        page.get_by_role("button", name="Test Connection").click()
    tested = answer.value.json()
    assert tested.get("status") is True, tested
    page.get_by_text(f"Runa answered at {sandbox.url}").wait_for()
    shoot("connection-tested")
    listed = all_of(page)

    page.get_by_role("button", name="Edit Connection").click()
    form = page.get_by_role("dialog")
    expect(form.get_by_label("API key")).to_have_value("***")
    form.get_by_role("button", name="Show value").click()
    for section in ("Extra Fields", "Extra Fields JSON"):
        form.get_by_role("button", name=section, exact=True).click()
    expect(form.get_by_text('"api_version"')).to_be_visible()
    for shown in (listed, all_of(page)):
        assert "runa_default" in shown
        assert API_KEY not in shown
        assert API_KEY.partition(".")[2] not in shown


def test_the_link_leads_to_the_portal(order_task: str, browser: BrowserContext, page: Page, shoot: Shoot) -> None:
    from playwright.sync_api import expect

    page.goto(f"{order_task}/details")
    link = page.get_by_role("link", name="Runa portal")
    expect(link).to_have_attribute("href", PORTAL)
    expect(link).to_have_attribute("target", "_blank")
    expect(link).to_have_attribute("rel", re.compile("noopener"))
    shoot("extra-link")
    browser.route(f"{PORTAL}**", lambda route: route.fulfill(body="Here would be the portal."))
    with browser.expect_page() as opened:
        link.click()
    expect(opened.value.get_by_text("Here would be the portal.")).to_be_visible()
    assert opened.value.url == PORTAL
    opened.value.close()


@pytest.mark.parametrize(
    ("tab", "shows", "picture"),
    [
        ("", "is PROCESSING", None),
        ("/rendered_templates", '"email_address": "***"', "rendered-templates"),
        ("/xcom", '"total_price"', None),
        ("/task-state-store", '"idempotency_key"', None),
        ("/details", "RunaCreateOrderOperator", None),
    ],
    ids=["logs", "rendered", "xcom", "state", "details"],
)
def test_no_link_and_no_recipient_is_shown(
    order_task: str, payout_links: list[str], page: Page, shoot: Shoot, tab: str, shows: str, picture: str | None
) -> None:
    page.goto(f"{order_task}{tab}")
    if tab == "/xcom":
        page.get_by_role("button", name="Expand all extra JSON").click()
    page.get_by_text(shows).first.wait_for()
    if picture:
        shoot(picture)
    shown = all_of(page)
    assert [secret for secret in (ADDRESS, API_KEY, *payout_links) if secret in shown] == []
