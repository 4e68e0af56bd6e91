"""Pay a whole campaign: each recipient key is paid at most once, from any DAG at any time.

Read in this order:

- ``rows``: reads and checks one row of the input.
- ``ledger``: the tables and all statements on them. The ledger stores who was paid, and the records of placing.
- ``plan``: writes rows to the ledger, in batches of one order each. A plan is frozen before its first order is sent.
- ``pay``: places the orders of open batches through ``placement``, many at once.
- ``settle``: writes the results of placed orders to the ledger.
- ``concurrency``: runs coroutines at once, for ``pay`` and ``settle``.
- ``reconcile``: finds differences between the ledger and Runa.
- ``errors``: how a campaign can end unfinished.

This package imports neither Airflow nor an HTTP client.
"""
