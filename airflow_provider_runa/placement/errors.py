"""How an attempt can end without an order, in words for a person at three in the morning.

Each error says what happened to the money, what the task does next and what to do. None of them names a recipient,
a link or a key. ``retryable`` says whether another attempt may end differently.
"""

from __future__ import annotations

from typing import Any, ClassVar

from airflow_provider_runa.api.errors import RunaError


class PlacementError(RunaError):
    """An attempt ended without an order that it may call its own.

    :param facts: the values for the places in ``money``, ``next`` and ``todo``.
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
        super().__init__(" ".join(text.format(**facts) for text in (self.money, self.next, self.todo)))

    @property
    def happened(self) -> str:
        """What happened to the money, alone."""
        return self.money.format(**self.facts)

    @property
    def cause(self) -> RunaError | None:
        """The answer behind it, if there is one: it says how long to wait, see ``retries``."""
        answer = self.facts.get("answer")
        return answer if isinstance(answer, RunaError) else None

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.facts)


def _rebuild(kind: type[PlacementError], facts: dict[str, Any]) -> PlacementError:
    return kind(**facts)


class RefusedError(PlacementError):
    """Runa looked at the order and refused it."""

    @property
    def nobody_was_paid(self) -> bool:
        """Whether it is known of every request for this identity that it has paid nobody."""
        return bool(self.facts["accounted"])


class OrderRejectedError(RefusedError):
    """Runa refused the order for a reason that only a change of the order or the account can heal."""

    retryable = False
    money = "This request paid nobody: Runa refused the order ({answer}); {earlier}."
    next = "The task fails without further retries, because they would be refused as well."
    todo = "Mend what Runa names, then clear the task."


class OrderHeldBackError(RefusedError):
    """Runa refused the order for a reason that time or a top-up can heal."""

    retryable = True
    money = "This request paid nobody: Runa refused the order for now ({answer}); {earlier}."
    next = "The next retry sends the order again."
    todo = "Top up the balance or lift the restriction that Runa names; if no retry is left, clear the task."


class AccessRefusedError(PlacementError):
    """Runa refused the request before it looked at the order: the key, the address or the version is wrong."""

    retryable = False
    money = "This request paid nobody: Runa refused it at the door ({answer}); {earlier}."
    next = "The task fails without further retries."
    todo = "Mend the connection (API key, host, API version), then clear the task: it goes on with the same order."


class OutcomeUnknownError(PlacementError):
    """No usable answer came within the time an attempt has, and the order list does not settle it."""

    retryable = True
    money = "Unknown whether the order was placed (last answer: {answer})."
    next = "The next retry sends the same order under the same key, which cannot pay twice."
    todo = (
        "If no retry is left, clear the task; to see for yourself, look for reference {reference} in the Runa portal."
    )


class InconclusiveSearchError(PlacementError):
    """The order list cannot tell whether the order exists, because some orders do not show what they are yet."""

    retryable = True
    money = (
        "Unknown whether the order was placed ({reason}): it is not in the order list, but {hidden} order(s) that "
        "are still processing do not show their description."
    )
    next = "Nothing more was sent. The next retry looks again."
    todo = "If no retry is left, look for reference {reference} in the Runa portal, then clear the task."


class PaymentChangedError(PlacementError):
    """An order was placed under this identity that pays something else than the task wants now."""

    retryable = False
    money = "Order {order_id} was placed earlier for this identity and pays something else: {fields}."
    next = "Nothing was sent now, and the task fails without further retries."
    todo = (
        "If the earlier payment was right, restore the task's input and clear it; if this one is to be paid as well, "
        "give it an order_key of its own."
    )


class WrongAccountError(PlacementError):
    """Runa does not know an order that this task has placed."""

    retryable = False
    money = "Order {order_id} was placed by this task, but Runa does not know it here."
    next = "Nothing was sent now, and the task fails without further retries."
    todo = "The connection points at another account than the one that paid: set it right, then clear the task."


class RecordUnavailableError(PlacementError):
    """The record of the task cannot be read or written, so that nothing (more) may be sent."""

    retryable = True
    money = (
        "Nothing was sent from here on, because the record of what the task sends cannot be {verb} ({reason}); "
        "what it has sent before is not lost."
    )
    next = "The next retry begins with the record again, and finds an order that was placed."
    todo = "Check that the worker reaches Airflow's API server; if no retry is left, clear the task."


class OrderFailedError(PlacementError):
    """Runa accepted the order and could not complete it. Runa gives no reason for it."""

    retryable = True
    money = "Nobody was paid: order {order_id} ended FAILED at Runa, which gives no reason."
    next = "The next retry places the order again, as a new one."
    todo = "If no retry is left, clear the task; if it keeps failing, ask Runa's support about {order_id}."


class StatusUnreadableError(PlacementError):
    """The order was placed, but whether it goes well cannot be read now."""

    retryable = True
    money = "Order {order_id} was placed; its status could not be read ({answer})."
    next = "The next retry takes up the same order and sends nothing."
    todo = "If no retry is left, clear the task."


class GenerationsExhaustedError(PlacementError):
    """Every generation there can be was refused or ended FAILED."""

    retryable = False
    money = "Nobody was paid: all {count} attempts to place this order were refused or ended FAILED."
    next = "The task fails without further retries."
    todo = "Find out why with Runa's support, then pay under a new order_key."


class StillProcessingError(PlacementError):
    """The order was placed, and is not done within the time that the task waits."""

    retryable = True
    money = "Order {order_id} was placed and is still PROCESSING after {seconds} s of waiting; it goes on at Runa."
    next = "The next retry takes up the same order and sends nothing."
    todo = "If no retry is left, clear the task; raise its timeout if orders take that long."


class LinksNotWrittenError(PlacementError):
    """The order is COMPLETED, and its payout links could not be written to where they were to go."""

    retryable = True
    money = "Order {order_id} is COMPLETED, but its payout links could not be written to links_to ({reason})."
    next = "The next retry takes up the same order, sends nothing and writes them anew."
    todo = "See that the worker can write there; if no retry is left, clear the task."
