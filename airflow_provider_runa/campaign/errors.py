"""How a campaign can end unfinished.

Like the errors of ``placement``, each has three lines: what happened to the money, what happens next, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.placement.errors import PlacementError


class InvalidCampaignError(InvalidOrderError):
    """The rows cannot be paid as they are. None of them was written to the ledger, and nothing was sent."""


def unknown_campaign(campaign: str, known: Sequence[str], environment: str) -> InvalidCampaignError:
    """Return the error for a campaign that the ledger does not have. It lists the names that are closest.

    :param campaign: the name.
    :param known: the campaigns that the ledger has.
    :param environment: the environment that they belong to.
    """
    listed = ", ".join(map(repr, difflib.get_close_matches(campaign, known, n=5, cutoff=0.0)))
    return InvalidCampaignError(
        f"campaign: the ledger has no campaign {campaign!r} on {environment}; "
        + (f"of {len(known)} there are {listed}" if listed else "it has none yet")
    )


class LedgerVersionError(PlacementError):
    """The ledger belongs to another release of the provider."""

    retryable = False
    money = "Nothing was sent: the ledger's tables have version {found}, and this release needs version {wanted}."
    next = "The task fails without further retries."
    todo = "Install the release that made the ledger, or migrate the ledger (see the changelog), then clear the task."


class BalanceTooLowError(PlacementError):
    """The balance does not cover what is planned."""

    retryable = True
    money = (
        "Nothing was sent in this attempt: {count} payout(s) of {total} {currency} are to be paid, and the balance is "
        "{balance} {currency}."
    )
    next = "The next retry reads the balance again."
    todo = "Top up the balance. If no retry is left, clear the task."


class CampaignUnfinishedError(PlacementError):
    """Some orders could not be placed, or their outcome is unknown. The others were placed."""

    retryable = True
    money = "Campaign {campaign!r}: {counts}. {unplaced} order(s) are not placed, or not known to be ({reason})."
    next = "The next retry continues with these orders only, and pays nobody twice."
    todo = "If no retry is left, clear the task."


class CampaignFailedError(PlacementError):
    """Orders ended FAILED. They paid nobody."""

    retryable = True
    money = "Campaign {campaign!r}: {counts}. The failed rows were not paid: Runa could not complete their orders."
    next = (
        "The next retry orders again for the failed rows that are in its input "
        '(in mode "pay": whose orders this task placed), and for nobody else.'
    )
    todo = (
        "If no retry is left, clear the task; for rows that another run planned, clear that run's task. If they fail "
        "again, ask Runa's support."
    )


class CampaignRejectedError(PlacementError):
    """Runa rejected orders, and no retry changes that."""

    retryable = False
    money = "Campaign {campaign!r}: {counts}. The rejected rows were not paid ({reason})."
    next = "The task fails without further retries, because Runa would reject them too."
    todo = "Fix the rejected rows (the ledger lists them), then clear the task that planned them: it plans only those."


class CampaignStillProcessingError(PlacementError):
    """All orders were placed, and some are not done within the time that the task waits."""

    retryable = True
    money = "Campaign {campaign!r}: {counts}. Everything was sent, and {orders} order(s) are still PROCESSING at Runa."
    next = "The next retry continues to wait and sends nothing."
    todo = "If no retry is left, clear the task. If orders take that long, raise its timeout."


class OrderNotInLedgerError(PlacementError):
    """After a deferral, the ledger does not know an order that the task placed."""

    retryable = False
    money = "Order {order_id} was placed by this task and continues, but the ledger of {campaign!r} does not have it."
    next = "The task fails without further retries."
    todo = (
        "campaign, ledger_conn_id or runa_conn_id changed while the task was deferred. Restore them, then clear the "
        "task."
    )


class LedgerDiffersError(PlacementError):
    """The ledger and Runa disagree on who was paid."""

    retryable = False
    money = "The ledger and Runa differ for {what}: {counts}."
    next = "Nothing was sent or changed. The task fails without further retries."
    todo = (
        "The log lists the differences; runa-reconcile lists them with recipients. Resolve them, then clear the task."
    )


class OrderListUnreadableError(PlacementError):
    """Runa's order list cannot be read, so that nothing may be sent."""

    retryable = True
    money = "Nothing was sent in this attempt: Runa's order list could not be read ({answer})."
    next = "The next retry reads it again, and pays nobody twice."
    todo = "If no retry is left, clear the task."


class CatchUpInconclusiveError(PlacementError):
    """Orders in Runa's list do not show yet what they pay. They may be orders of this campaign."""

    retryable = True
    money = (
        "Nothing was sent in this attempt: {hidden} order(s) in Runa's list are still processing and hide what they "
        "pay. The ledger does not know them, and they may be orders of campaign {campaign!r}."
    )
    next = "The next retry reads them again, and pays nobody twice."
    todo = "If no retry is left, clear the task. If an order hangs, ask Runa's support about it."


class LedgerBehindError(PlacementError):
    """Runa has orders of the campaign that the ledger does not know, and that do not show which rows they pay."""

    retryable = False
    money = (
        "Nothing was sent in this attempt: Runa has {orders} order(s) of campaign {campaign!r} that this ledger does "
        "not know, such as {order_id}, and they do not show which rows they pay."
    )
    next = "The task fails without further retries, because rows could be paid twice."
    todo = (
        "Check that ledger_conn_id is the database that paid this campaign, and not an older copy of it. Otherwise use "
        "a new campaign name with the recipients that were not paid."
    )


class OtherAccountError(PlacementError):
    """Runa does not know an order that the ledger has placed."""

    retryable = False
    money = (
        "Nothing was sent in this attempt: order {order_id} of campaign {campaign!r} is in the ledger, but this Runa "
        "account does not have it."
    )
    next = "The task fails without further retries."
    todo = "The connection points at another account than the one that paid. Correct it, then clear the task."


class LedgerUnavailableError(PlacementError):
    """The ledger's database cannot be read or written."""

    retryable = True
    money = "The ledger ({place}) cannot be reached ({reason}). Orders that were sent before are not lost."
    next = "The next retry reads the ledger and Runa's order list again, and pays nobody twice."
    todo = "Check the ledger's connection and its database. If no retry is left, clear the task."


class PayoutMismatchError(PlacementError):
    """An order is COMPLETED, and does not pay all rows as they were planned."""

    retryable = False
    money = (
        "Campaign {campaign!r}: {counts}. {rows} row(s) are in COMPLETED orders that do not pay them as planned "
        "({reason})."
    )
    next = "The task fails without further retries. These rows are not paid again."
    todo = "Compare them with Runa's portal (runa-reconcile lists them), and ask Runa's support."
