"""Apache Airflow provider for Runa's payouts API.

``api`` is Runa as it is, ``placement`` places an order exactly once; ``hooks``, ``operators``, ``sensors``
and ``triggers`` are the thin Airflow side of both; ``sandbox`` is a local Runa API for development and tests.
"""

__version__ = "0.1.0"
