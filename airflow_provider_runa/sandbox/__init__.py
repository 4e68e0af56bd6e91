"""A local Runa API for development and tests: ``python -m airflow_provider_runa.sandbox``.

``engine`` behaves as Runa does and knows no web framework. ``catalogue`` is what it sells, ``rules`` what it refuses.
``faults`` and ``lies`` are what a test can switch on. ``app`` serves it over HTTP, with ``controls`` for the tests. It
shares no code with ``airflow_provider_runa.api``, so that the two test each other.
"""

DEFAULT_API_KEY = "XXsandbox.secret"
