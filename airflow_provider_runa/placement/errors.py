"""How an attempt can end without an order.

An error has three lines: what happened to the money, what happens next, what to do. None of them names a recipient, a
link or a key. ``retryable`` says whether another attempt may end differently.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from airflow_provider_runa.api.errors import RunaError


class PlacementError(RunaError):
    """An attempt ended without a usable order.

    :param facts: values for the placeholders in ``money``, ``next`` and ``todo``.
    """

    #: Whether another attempt may end differently.
    retryable: ClassVar[bool]
    #: What happened to the money.
    money: ClassVar[str]
    #: What the task does next.
    next: ClassVar[str]
    #: What to do.
    todo: ClassVar[str]

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        super().__init__("\n".join(_line(text, facts) for text in (self.money, self.next, self.todo)))

    @property
    def happened(self) -> str:
        """The first line: what happened to the money."""
        return _line(self.money, self.facts)

    @property
    def cause(self) -> RunaError | None:
        """Runa's answer that caused the error, if there is one. ``retry_policy`` derives the retry delay from it."""
        answer = self.facts.get("answer")
        return answer if isinstance(answer, RunaError) else None

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.facts)


def _line(text: str, facts: dict[str, Any]) -> str:
    """Return a line with its facts, which may be texts of Runa's: on one line, and without control characters."""
    line = re.sub(r"\s*[\r\n]+\s*", " ", text.format(**facts))
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def _rebuild(kind: type[PlacementError], facts: dict[str, Any]) -> PlacementError:
    return kind(**facts)


class RejectedError(PlacementError):
    """Runa processed the order and rejected it."""

    @property
    def nobody_was_paid(self) -> bool:
        """Whether every request for this identity is known to have paid nobody."""
        return bool(self.facts["accounted"])


class OrderRejectedError(RejectedError):
    """Runa rejected the order. Only a change of the order or of the account fixes that."""

    retryable = False
    money = "This request paid nobody: Runa rejected the order ({answer}); {earlier}."
    next = "The task fails without further retries, because Runa would reject them too."
    todo = "Fix what Runa names, then clear the task."


class OrderHeldBackError(RejectedError):
    """Runa rejected the order for now. Time or a top-up fixes that."""

    retryable = True
    money = "This request paid nobody: Runa rejected the order for now ({answer}); {earlier}."
    next = "The next retry sends the order again."
    todo = "Top up the balance or lift the restriction that Runa names. If no retry is left, clear the task."


class AccessRejectedError(PlacementError):
    """Runa rejected the request before processing it: the API key, the address or the version is wrong."""

    retryable = False
    money = "This request paid nobody: Runa rejected it before processing the order ({answer}); {earlier}."
    next = "The task fails without further retries."
    todo = "Fix the connection (API key, host, API version), then clear the task. It continues with the same order."


class SearchRejectedError(AccessRejectedError):
    """Runa rejected a request that reads the order list, so an earlier order cannot be found."""

    money = "{outcome}: Runa rejected the request for the order list ({answer})."


class NothingSentError(PlacementError):
    """No connection to Runa could be opened."""

    retryable = True
    money = "{outcome}: no connection to {address} could be opened ({answer})."
    next = "The next retry sends the order."
    todo = (
        "Check that {address} can be reached from the worker (address, network, proxy); for the sandbox: is "
        "runa-sandbox running? If no retry is left, clear the task."
    )


class OutcomeUnknownError(PlacementError):
    """No usable answer came in time, and the order list does not show the order."""

    retryable = True
    money = "Unknown whether the order was placed (last answer: {answer})."
    next = "The next retry sends the same order under the same idempotency key, which cannot pay twice."
    todo = "If no retry is left, clear the task. To check yourself, search for {reference} in the Runa portal."


class InconclusiveSearchError(PlacementError):
    """The order list cannot show whether the order exists, because some orders do not show what they are yet."""

    retryable = True
    money = (
        "Unknown whether the order was placed ({reason}): the order list does not show it, but {hidden} order(s) in it "
        "do not show their description yet."
    )
    next = "Nothing more was sent. The next retry searches again."
    todo = "If no retry is left, search for {reference} in the Runa portal, then clear the task."


class PaymentChangedError(PlacementError):
    """An order was placed earlier for this identity, and it pays something else."""

    retryable = False
    money = "Order {order_id} was placed earlier for this identity and pays something else: {fields}."
    next = "Nothing was sent now. The task fails without further retries."
    todo = (
        "If the earlier payment is right, restore the task's input and clear the task. If this one must be paid too, "
        "give it a different order_key."
    )


class WrongAccountError(PlacementError):
    """Runa does not know an order that this task placed."""

    retryable = False
    money = "Order {order_id} was placed by this task, but this Runa account does not have it."
    next = "Nothing was sent now. The task fails without further retries."
    todo = "The connection points at another account than the one that paid. Correct it, then clear the task."


class RecordUnavailableError(PlacementError):
    """The record of the task cannot be read or written, so nothing more may be sent."""

    retryable = True
    money = (
        "Nothing was sent from here on, because the record of what this task sent cannot be {verb} ({reason}). "
        "Earlier requests are not lost."
    )
    next = "The next retry reads the record again and finds an order that was placed."
    todo = "Check that the worker reaches Airflow's API server. If no retry is left, clear the task."


class OrderFailedError(PlacementError):
    """Runa accepted the order and could not complete it. Runa gives no reason."""

    retryable = True
    money = "Nobody was paid: order {order_id} ended FAILED. Runa gives no reason."
    next = "The next retry places the order again, as a new order."
    todo = "If no retry is left, clear the task. If it fails again, ask Runa's support about {order_id}."


class StatusUnreadableError(PlacementError):
    """The order was placed, but its status cannot be read now."""

    retryable = True
    money = "Order {order_id} was placed, but its status could not be read ({answer})."
    next = "The next retry reads the same order again and sends nothing."
    todo = "If no retry is left, clear the task."


class KeySpentError(PlacementError):
    """The idempotency key of an exclusive identity is spent: Runa holds an answer under it that paid nobody."""

    retryable = True
    money = "Nobody was paid by the order with reference {reference}: Runa will only repeat its earlier answer."
    next = "The next retry places the order again, as a new order."
    todo = "If no retry is left, clear the task."


class GenerationsExhaustedError(PlacementError):
    """Every generation of the identity was rejected or ended FAILED."""

    retryable = False
    money = "Nobody was paid: all {count} attempts to place this order were rejected or ended FAILED."
    next = "The task fails without further retries."
    todo = "Ask Runa's support for the cause, then pay under a new order_key."


class StillProcessingError(PlacementError):
    """The order was placed, and is not done within the time that the task waits."""

    retryable = True
    money = "Order {order_id} was placed and is still PROCESSING after {seconds} s. Runa continues with it."
    next = "The next retry waits for the same order and sends nothing."
    todo = "If no retry is left, clear the task. If orders take that long, raise its timeout."


class OrderMismatchError(PlacementError):
    """The order is COMPLETED, and does not pay what was ordered."""

    retryable = False
    money = "Order {order_id} is COMPLETED, but does not pay what was ordered: {problems}."
    next = "The task fails without further retries. Nothing is sent again."
    todo = "Compare the order with Runa's portal, and ask Runa's support."


class LinksNotWrittenError(PlacementError):
    """The order is COMPLETED, but its payout links could not be written to ``links_to``."""

    retryable = True
    money = "Order {order_id} is COMPLETED, but its payout links could not be written to links_to ({reason})."
    next = "The next retry reads the same order, sends nothing and writes the links again."
    todo = "Make sure that the worker can write there. If no retry is left, clear the task."
