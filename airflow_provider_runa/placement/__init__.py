"""Placing an order exactly once, whatever crashes, faults, retries, clears or passing weeks come in between.

Read in this order:

- ``identity``: what makes two attempts the same order, and what is derived from that (key, reference, metadata).
- ``payment``: what moves money in an order, and how two payments are compared.
- ``record``: what a task remembers between its attempts.
- ``ports``: the client, record store and clock that the algorithm is handed, and how it runs without an event loop.
- ``place``: the algorithm.
- ``reconcile``: looking for an order in Runa's order list, the one thing that outlives Runa's memory of keys.
- ``errors``: how an attempt can end without an order, in words for a person.

Nothing in here knows Airflow or HTTP.
"""
