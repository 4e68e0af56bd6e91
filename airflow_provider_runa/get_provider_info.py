"""The metadata of this provider for Airflow: its connection type with the form, and the modules of its classes."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata in the form that Airflow's provider discovery expects.

    The connection form uses the keys that Airflow 3.3 reads. For older releases, the class methods of
    :class:`~.hooks.runa.RunaHook` return the same form.
    """
    return {
        "package-name": "airflow-provider-runa",
        "name": "Runa",
        "description": "Rewards and payouts through Runa's payouts API, each placed exactly once.",
        "integrations": [
            {
                "integration-name": "Runa",
                "external-doc-url": "https://developer.runa.io/",
                "tags": ["service"],
            }
        ],
        "hooks": [
            {
                "integration-name": "Runa",
                "python-modules": ["airflow_provider_runa.hooks.runa", "airflow_provider_runa.hooks.ledger"],
            }
        ],
        "operators": [
            {
                "integration-name": "Runa",
                "python-modules": [
                    "airflow_provider_runa.operators.runa",
                    "airflow_provider_runa.operators.payout",
                    "airflow_provider_runa.operators.reconcile",
                    "airflow_provider_runa.operators.checks",
                ],
            }
        ],
        "sensors": [
            {
                "integration-name": "Runa",
                "python-modules": ["airflow_provider_runa.sensors.runa", "airflow_provider_runa.sensors.balance"],
            }
        ],
        "triggers": [
            {
                "integration-name": "Runa",
                "python-modules": ["airflow_provider_runa.triggers.runa", "airflow_provider_runa.triggers.balance"],
            }
        ],
        "transfers": [
            {
                "source-integration-name": "Common SQL",
                "target-integration-name": "Runa",
                "python-module": "airflow_provider_runa.transfers.sql_to_runa",
            }
        ],
        "task-decorators": [
            {"name": "runa_order", "class-name": "airflow_provider_runa.decorators.runa.runa_order_task"},
            {"name": "runa_payout", "class-name": "airflow_provider_runa.decorators.runa.runa_payout_task"},
        ],
        "extra-links": ["airflow_provider_runa.links.portal.RunaPortalLink"],
        "connection-types": [
            {
                "connection-type": "runa",
                "hook-class-name": "airflow_provider_runa.hooks.runa.RunaHook",
                "hook-name": "Runa",
                "ui-field-behaviour": {
                    # The port is shown because the UI of Airflow 3.3.1 and 3.3.2 tests a connection without a port as
                    # if its port were 0, and Airflow's API rejects that because it differs from the stored one.
                    "hidden-fields": ["login", "schema", "extra"],
                    "relabeling": {"password": "API key", "host": "Base URL"},
                    "placeholders": {
                        "password": "wg… (production) or XX… (playground)",
                        "host": "leave empty: the API key determines the environment",
                        "port": "leave empty; 0 for the Test button of Airflow 3.3.1 and 3.3.2",
                    },
                },
                "conn-fields": {
                    "api_version": {
                        "label": "API version",
                        "schema": {"type": ["string", "null"], "default": "2024-02-05"},
                        "description": "Dated version of the API.",
                    },
                    "timeout": {
                        "label": "Timeout (seconds)",
                        "schema": {"type": ["number", "null"], "default": 30},
                        "description": "How long one request may take.",
                    },
                    "orders_per_minute": {
                        "label": "Orders per minute",
                        "schema": {"type": ["integer", "null"], "default": 300},
                        "description": "The account's limit of order requests per minute.",
                    },
                    "deployment": {
                        "label": "Deployment",
                        "schema": {"type": ["string", "null"], "default": None},
                        "description": (
                            "Name of this Airflow installation, such as blue. Set it, before the first order, if "
                            "another one with the same DAGs uses the same Runa account."
                        ),
                    },
                },
            }
        ],
    }
