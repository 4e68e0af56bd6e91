"""How a campaign can end unfinished, in words for a person at three in the morning.

Like the errors of ``placement``: each says what happened to the money, what the task does next and what to do.
"""

from __future__ import annotations

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.placement.errors import PlacementError


class InvalidCampaignError(InvalidOrderError):
    """The rows cannot be paid as they are. Nothing of them was written into the ledger, and nothing was sent."""


class LedgerVersionError(PlacementError):
    """The ledger belongs to another release of the provider."""

    retryable = False
    money = "Nothing was sent: the ledger's tables have version {found}, this release of the provider takes {wanted}."
    next = "The task fails without further retries."
    todo = "Install the release that made the ledger, or bring the ledger along as the changelog says; clear the task."


class BalanceTooLowError(PlacementError):
    """The balance does not cover what is planned."""

    retryable = True
    money = (
        "Nothing was sent in this attempt: {count} payout(s) of {total} {currency} are to be paid, and the balance is "
        "{balance}."
    )
    next = "The next retry looks at the balance again."
    todo = "Top up the balance; if no retry is left, clear the task."


class CampaignUnfinishedError(PlacementError):
    """Some orders could not be placed, or their outcome is unknown; the others were."""

    retryable = True
    money = "Campaign {campaign!r}: {counts}. {unplaced} order(s) are not placed, or not known to be ({reason})."
    next = "The next retry goes on with those orders alone, and pays nobody twice."
    todo = "If no retry is left, clear the task."


class CampaignFailedError(PlacementError):
    """Orders ended FAILED; they paid nobody."""

    retryable = True
    money = "Campaign {campaign!r}: {counts}. The failed ones were paid nothing: Runa could not complete their orders."
    next = (
        'The next retry orders again for those of them that its input has (in mode "pay": whose orders it had placed), '
        "and for nobody else."
    )
    todo = (
        "If no retry is left, clear the task, and for rows that another run has planned that run's; if they keep "
        "failing, ask Runa's support."
    )


class CampaignRejectedError(PlacementError):
    """Runa refused orders for a reason that no retry heals."""

    retryable = False
    money = "Campaign {campaign!r}: {counts}. The rejected ones were paid nothing ({reason})."
    next = "The task fails without further retries, because they would be refused as well."
    todo = "Mend their rows (the ledger says which), then clear the task that planned them: it plans for them alone."


class CampaignStillProcessingError(PlacementError):
    """Everything was placed, and some orders are not done within the time that the task waits."""

    retryable = True
    money = "Campaign {campaign!r}: {counts}. Everything was sent; {orders} order(s) are still PROCESSING at Runa."
    next = "The next retry goes on waiting and sends nothing."
    todo = "If no retry is left, clear the task; raise its timeout if orders take that long."


class OrderNotInLedgerError(PlacementError):
    """After a deferral, the ledger does not know an order that the task has placed."""

    retryable = False
    money = "Order {order_id} was placed by this task and goes on, and the ledger has no such order in {campaign!r}."
    next = "The task fails without further retries."
    todo = (
        "campaign, ledger_conn_id or runa_conn_id name something else than when the task was deferred: set them right, "
        "then clear the task."
    )


class LedgerDiffersError(PlacementError):
    """The ledger and Runa do not say the same of who was paid."""

    retryable = False
    money = "The ledger and Runa differ for {what}: {counts}."
    next = "Nothing was sent or changed, and the task fails without further retries."
    todo = "See which in the log, or with recipients by python -m airflow_provider_runa.reconcile; then clear the task."
