"""Pay a whole campaign: each recipient key is paid at most once, from any DAG at any time.

Read in this order:

- ``rows``: reads and checks one row of the input.
- ``digests``: how an order itself shows which rows it pays, and how the id of a batch is derived.
- ``tables``: the tables of the ledger, and its database.
- ``ledger``: who was paid, and the records of placing. A row becomes paid in ``settle_completed``.
- ``batches``, ``planning``, ``found``: the other statements on the tables.
- ``catch_up``: brings a ledger up to date with Runa's order list, before anything is sent.
- ``plan``: writes rows to the ledger, in batches of one order each. A plan is frozen before its first order is sent.
- ``pay``: places the orders of the batches that a run has checked, through ``placement``, many at once.
- ``settle``: writes the results of placed orders to the ledger. Only here a row is found to be paid.
- ``concurrency``: runs coroutines at once, for ``pay`` and ``settle``.
- ``reconcile``: finds differences between the ledger and Runa.
- ``errors``: how a campaign can end unfinished.

This package imports neither Airflow nor an HTTP client.
"""
