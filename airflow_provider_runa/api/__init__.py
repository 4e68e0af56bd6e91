"""Runa's API: models, errors, settings, clients and the rules for retries. Nothing here imports Airflow.

Import from the modules. This package imports none of them, so that code which needs only ``models`` and ``errors``
(such as ``placement``) does not load an HTTP library.
"""
