"""Paying a whole campaign: each recipient key of a campaign is paid at most once, from whichever DAG, whenever.

Read in this order:

- ``rows``: what one row of the input says, checked.
- ``ledger``: the tables, and every statement on them. It remembers who was paid, and it is the record of placing.
- ``plan``: rows into the ledger, as batches that become one order each; frozen before the first order is sent.
- ``pay``: the open batches into orders, many at once, through ``placement``; and their results into the ledger.
- ``reconcile``: what differs between the ledger and Runa.
- ``errors``: how a campaign can end unfinished, in words for a person.

Nothing in here knows Airflow or HTTP.
"""
