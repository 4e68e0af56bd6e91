"""How RunaPayoutOperator reads its campaign, rows and defaults, and what of them Airflow stores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException

from airflow_provider_runa.operators.payout import RunaPayoutOperator
from airflow_provider_runa.utils.masking import Masked
from tests.campaign.test_rows import Frame
from tests.campaign.world import DEFAULTS, row
from tests.support.airflow import SharedClock, redact, reset_secrets_masker, stored_fields, task_context
from tests.support.sandbox import RunningSandbox


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection ``ledger``, to a SQLite file."""
    connection = {"conn_type": "sqlite", "host": str(tmp_path / "ledger.db")}
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps(connection))


def operator(runa: RunningSandbox | None = None, rows: Any = None, **values: Any) -> RunaPayoutOperator:
    given = {"campaign": "spring", "currency": "USD", "ledger_conn_id": "ledger", "defaults": DEFAULTS}
    task = RunaPayoutOperator(**({"task_id": "pay", "rows": rows} | given | values))
    if runa is not None:
        task.clock = SharedClock(runa)  # type: ignore[assignment]
    return task


def rejection(task: RunaPayoutOperator, runa: RunningSandbox) -> str:
    with pytest.raises(AirflowFailException) as caught:
        task.execute(task_context())
    assert "POST /order" not in runa.stats()["requests"]
    return str(caught.value)


def render(task: RunaPayoutOperator, *, native: bool = False, **values: Any) -> None:
    task.dag = DAG("rewards", schedule=None, render_template_as_native_obj=native)
    task.render_template_fields(values)  # type: ignore[arg-type]


# -- the campaign -----------------------------------------------------------------------------------------------------


def test_a_campaign_that_was_rendered_to_a_number_is_rejected(runa: RunningSandbox) -> None:
    task = operator(runa, [row(1)], campaign="{{ month }}")
    render(task, native=True, month="2026_10")
    assert task.campaign == 202610, "what would be another campaign"  # type: ignore[comparison-overlap]
    assert "campaign: must be text, not int. With render_template_as_native_obj=True, 2026_10" in rejection(task, runa)


@pytest.mark.parametrize("campaign", [None, "", " ", "None", "nan"])
def test_a_campaign_whose_value_is_missing_is_rejected(runa: RunningSandbox, campaign: Any) -> None:
    assert "campaign: is missing" in rejection(operator(runa, [row(1)], campaign=campaign), runa)


def test_a_campaign_with_an_invisible_character_is_rejected(runa: RunningSandbox) -> None:
    text = rejection(operator(runa, [row(1)], campaign="spring\u200b"), runa)
    assert "campaign: has an invisible character at position 7 (U+200B)" in text


def test_a_campaign_is_the_same_in_all_forms_of_its_characters(runa: RunningSandbox) -> None:
    assert operator(runa, [row(1)], campaign="\u00e9t\u00e9").execute(task_context())["rows"] == {"paid": 1}
    again = operator(runa, [row(1)], campaign=" e\u0301te\u0301 ", task_id="b").execute(task_context(task_id="b"))
    assert (again["run"]["already_paid"], again["campaign"]) == (1, "\u00e9t\u00e9")


# -- the rows ---------------------------------------------------------------------------------------------------------


def test_a_key_that_was_rendered_to_a_number_is_rejected(runa: RunningSandbox) -> None:
    rows = [row(1), row(2) | {"recipient_key": "{{ phone }}"}]
    task = operator(runa, rows)
    render(task, native=True, phone="+447911123456")
    assert "rows[1].recipient_key: is text that was rendered to something else" in rejection(task, runa)
    task = operator(runa, rows)
    render(task, phone="+447911123456")
    assert task.execute(task_context())["rows"] == {"paid": 2}


def test_numbers_that_an_xcom_has_as_keys_are_allowed(runa: RunningSandbox) -> None:
    task = operator(runa, "{{ people }}")
    render(task, native=True, people=[row(1) | {"recipient_key": 42}])
    assert task.execute(task_context())["rows"] == {"paid": 1}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (Frame(), "rows: must be a list of mappings, not Frame; convert it, as in frame.to_dict('records')"),
        ('"customer-7311"', "rows: must be a list, not str"),
        ("customer-7311", "rows: rendered to text that is not JSON"),
        (None, "rows: is missing; give a list"),
    ],
)
def test_what_is_no_list_of_rows_is_rejected(runa: RunningSandbox, rows: Any, problem: str) -> None:
    text = rejection(operator(runa, rows), runa)
    assert problem in text
    assert "7311" not in text


def test_rows_that_can_be_read_only_once_are_rejected_in_the_dag() -> None:
    with pytest.raises(ValueError, match="rows: must be a list, not generator, which the next attempt could not read"):
        operator(rows=(row(number) for number in range(3)))


def test_a_subclass_may_set_rows_which_do_not_show(runa: RunningSandbox) -> None:
    class FromFunction(RunaPayoutOperator):
        def iter_rows(self, context: Any) -> Iterator[Any]:
            self.rows = [row(number) for number in range(3)]
            yield from super().iter_rows(context)

    task = FromFunction(task_id="pay", campaign="spring", currency="USD", ledger_conn_id="ledger", defaults=DEFAULTS)
    task.clock = SharedClock(runa)  # type: ignore[assignment]
    assert task.execute(task_context())["rows"] == {"paid": 3}
    assert "@example.com" not in repr(vars(task)), "OpenLineage reports attributes of tasks"


def test_a_subclass_and_a_hook_may_read_the_rendered_rows(runa: RunningSandbox) -> None:
    seen: list[Any] = []

    class SevenEach(RunaPayoutOperator):
        def pre_execute(self, context: Any) -> None:
            seen.extend((len(self.rows), self.rows[0]["recipient_key"], bool(self.rows)))

        def iter_rows(self, context: Any) -> Iterator[Any]:
            for one in self.rows:
                yield one | {"face_value": 7}

    task = SevenEach(
        task_id="pay",
        campaign="spring",
        currency="USD",
        ledger_conn_id="ledger",
        defaults=DEFAULTS,
        rows="{{ rows }}",
    )
    task.clock = SharedClock(runa)  # type: ignore[assignment]
    task.rows = rows = [row(1), row(2)]
    render(task)
    assert isinstance(task.rows, Masked)
    task.pre_execute(task_context())
    assert seen == [2, rows[0]["recipient_key"], True]
    assert task.execute(task_context())["amounts"] == {"paid": "14.00"}


# -- the defaults -----------------------------------------------------------------------------------------------------


def test_defaults_may_be_rendered_to_json(runa: RunningSandbox) -> None:
    task = operator(runa, [row(1)], defaults="{{ defaults | tojson }}")
    render(task, defaults=DEFAULTS)
    assert task.execute(task_context())["rows"] == {"paid": 1}


def test_defaults_without_effect_are_rejected(runa: RunningSandbox) -> None:
    text = rejection(operator(runa, [row(1)], defaults=DEFAULTS | {"currency": "USD"}), runa)
    assert "defaults: has no use for the field(s) currency" in text
    assert "defaults: rendered to text that is not JSON" in rejection(operator(runa, [row(1)], defaults="none"), runa)


def test_recipients_in_defaults_are_neither_stored_nor_paid(runa: RunningSandbox) -> None:
    reset_secrets_masker()
    task = operator(runa, [row(1)], defaults=DEFAULTS | {"email_address": "{{ office }}"})
    render(task, office="office-7311@example.com")
    assert isinstance(task.defaults, Masked)
    stored = json.dumps(stored_fields(task))
    assert "template_id" in stored
    assert "7311" not in stored
    assert redact("to office-7311@example.com") == "to ***"
    assert "defaults: email_address: is a field of each row, and has no default" in rejection(task, runa)


def test_defaults_without_recipients_stay_a_mapping_for_subclasses() -> None:
    task = operator(rows=[])
    render(task)
    assert task.defaults == DEFAULTS
