"""A local Runa API for development and tests: ``python -m airflow_provider_runa.sandbox``.

``engine`` behaves as Runa does and knows no web framework; ``catalogue`` is what it sells; ``app`` serves it over HTTP.
It shares no code with ``airflow_provider_runa.api``, so that the two test each other.
"""
