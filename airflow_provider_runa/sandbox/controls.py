"""The sandbox's controls over HTTP, below ``/_sandbox``: what a test can switch on, set and ask for.

A control is about the account whose key it is sent with (``X-Api-Key``); without a key, about the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

from airflow_provider_runa.sandbox.answers import Refusal
from airflow_provider_runa.sandbox.engine import Engine, Fault, Lie, OrderStatus, PayoutStatus

router = APIRouter(prefix="/_sandbox")


@dataclass(config=ConfigDict(extra="forbid"))
class CheckedFault(Fault):
    """A fault whose fields are checked."""


@dataclass(config=ConfigDict(extra="forbid"))
class CheckedLie(Lie):
    """A lie whose fields are checked."""


class _Control(BaseModel):
    model_config = ConfigDict(extra="forbid")


class BalanceSetting(_Control):
    """A balance to set."""

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    balance: Annotated[Decimal, Field(ge=0)]


class Advance(_Control):
    """How far the sandbox's clock moves, in seconds: up to ten years."""

    seconds: Annotated[float, Field(ge=0, le=10 * 365 * 86400)]


class AddedOrder(_Control):
    """An order of somebody else."""

    order: dict[str, Any]
    status: OrderStatus = "COMPLETED"


class StatusSetting(_Control):
    """How an order ends."""

    status: OrderStatus


class PayoutSetting(_Control):
    """What becomes of a payout."""

    status: PayoutStatus
    item: int = 0
    expiry_date: AwareDatetime | None = None


class AddedAccount(_Control):
    """Another account."""

    api_key: Annotated[str, Field(min_length=1)]


def _first(request: Request) -> Engine:
    """Return the first account."""
    engine: Engine = request.app.state.engine
    return engine


First = Annotated[Engine, Depends(_first)]


def _account(request: Request, first: First) -> Engine:
    """Return the account whose key a control is sent with, or the first."""
    key = request.headers.get("x-api-key")
    with _refused():
        return first if key is None else first.account(key)


Account = Annotated[Engine, Depends(_account)]


@contextmanager
def _refused() -> Iterator[None]:
    """Answer what the engine refuses."""
    try:
        yield
    except LookupError as error:
        raise HTTPException(404, str(error)) from None
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    except Refusal as refusal:
        raise HTTPException(refusal.status, refusal.body) from None


@router.post("/faults")
def add_faults(account: Account, faults: list[CheckedFault]) -> dict[str, int]:
    """Let something go wrong with requests."""
    account.faults.extend(faults)
    return {"faults": len(account.faults)}


@router.delete("/faults")
def clear_faults(account: Account) -> dict[str, int]:
    """Let nothing go wrong any more."""
    account.faults.clear()
    return {"faults": 0}


@router.post("/lies")
def add_lies(account: Account, lies: list[CheckedLie]) -> dict[str, int]:
    """Let something false be answered."""
    account.lies.extend(lies)
    return {"lies": len(account.lies)}


@router.delete("/lies")
def clear_lies(account: Account) -> dict[str, int]:
    """Let the truth be answered again."""
    account.lies.clear()
    return {"lies": 0}


@router.get("/stats")
def stats(account: Account) -> dict[str, Any]:
    """Return counts of orders, payouts and requests, without links or recipients."""
    return account.stats()


@router.get("/orders")
def orders(account: Account) -> list[dict[str, Any]]:
    """Return the orders, without links or recipients."""
    return [
        {
            "id": order.id,
            "status": order.status,
            "created_at": order.created,
            "description": order.body.get("description"),
            "metadata": order.body.get("metadata"),
            "currency": order.body["payment_method"]["currency"],
            "face_value": f"{sum(Decimal(str(item['face_value'])) for item in order.body['items']):.2f}",
            "items": len(order.body["items"]),
            "idempotency_key": order.idempotency_key,
        }
        for order in account.orders()
    ]


@router.post("/orders")
def add_order(account: Account, added: AddedOrder) -> dict[str, str]:
    """Add an order that somebody else placed on this account."""
    with _refused():
        return {"id": account.add_order(added.order, status=added.status)}


@router.post("/orders/{order_id}/status")
def set_status(account: Account, order_id: str, setting: StatusSetting) -> StatusSetting:
    """Settle an order now, or never."""
    with _refused():
        account.set_status(order_id, setting.status)
    return setting


@router.post("/orders/{order_id}/payout")
def set_payout(account: Account, order_id: str, setting: PayoutSetting) -> PayoutSetting:
    """Let a payout be claimed, cancelled or expire."""
    with _refused():
        account.set_payout(order_id, setting.status, item=setting.item, expiry_date=setting.expiry_date)
    return setting


@router.post("/accounts")
def add_account(first: First, added: AddedAccount) -> dict[str, str]:
    """Open another account of the same environment."""
    with _refused():
        first.add_account(added.api_key)
    return {"account": "added"}


@router.post("/reset")
def reset(account: Account) -> dict[str, str]:
    """Forget everything but the settings."""
    account.reset()
    return {"reset": "done"}


@router.post("/balance")
def set_balance(account: Account, setting: BalanceSetting) -> BalanceSetting:
    """Set the balance of a currency."""
    account.set_balance(setting.currency, setting.balance)
    return setting


@router.post("/advance")
def advance(first: First, by: Advance) -> dict[str, float]:
    """Let time pass, for all accounts."""
    first.advance(by.seconds)
    return {"now": first.now()}
