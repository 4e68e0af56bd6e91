"""Apache Airflow provider for Runa's payouts API.

``api`` is a client of Runa's API, ``placement`` places one order exactly once, and ``campaign`` pays many rows with one
ledger; none of them imports Airflow. ``hooks``, ``operators``, ``sensors`` and ``triggers`` connect them to Airflow.
``sandbox`` is a local Runa API for development and tests.
"""

__version__ = "0.1.0"
