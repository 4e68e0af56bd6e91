"""Place an order exactly once, in spite of crashes, faults, retries, clears and passing weeks.

Read in this order:

- ``identity``: what makes two attempts the same order, and what is derived from it (key, reference, metadata).
- ``payment``: what moves money in an order, and how two payments are compared.
- ``record``: what a task remembers between its attempts.
- ``digest``: digests of a payment, for the record that other people can read.
- ``ports``: the client, record store and clock that the caller passes in, and how to run without an event loop.
- ``place``: the algorithm.
- ``search``: finds an order in Runa's order list, which shows orders after Runa has forgotten their keys.
- ``missing``: what a missing value looks like as text.
- ``errors``: how an attempt can end without an order.

This package imports neither Airflow nor an HTTP client.
"""
