"""Names that moved between releases of Airflow and that ``common.compat`` 1.12 does not have."""

from __future__ import annotations

from typing import Any

try:
    from airflow.sdk.log import mask_secret
except ImportError:
    try:  # Airflow 3.0.0 to 3.0.4
        from airflow.sdk.execution_time.secrets_masker import mask_secret  # type: ignore[no-redef]
    except ImportError:  # Airflow 2.11, 3.0.5 and 3.0.6
        from airflow.utils.log.secrets_masker import mask_secret  # type: ignore[import-not-found, no-redef]


def secrets_masker() -> Any:
    """Return what masks secrets in this process. It is not part of Airflow's public interface."""
    try:
        from airflow.sdk._shared.secrets_masker import _secrets_masker
    except ImportError:
        try:  # Airflow 3.0.0 to 3.0.4
            from airflow.sdk.execution_time.secrets_masker import _secrets_masker  # type: ignore[no-redef]
        except ImportError:  # Airflow 2.11, 3.0.5 and 3.0.6
            from airflow.utils.log.secrets_masker import _secrets_masker  # type: ignore[no-redef]
    return _secrets_masker()


try:
    from airflow.sdk.bases.decorator import determine_kwargs
except ImportError:  # Airflow 2
    from airflow.utils.operator_helpers import determine_kwargs  # type: ignore[attr-defined]

try:
    from airflow.sdk.definitions.asset import AssetRef
except ImportError:  # Airflow 2, which has no references to assets

    class AssetRef:  # type: ignore[no-redef]
        """A class without instances, so that ``isinstance`` is always false."""


__all__ = ["AssetRef", "determine_kwargs", "mask_secret", "secrets_masker"]
