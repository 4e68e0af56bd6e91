"""Names that moved between the releases of Airflow, where common.compat does not have them in 1.14."""

from __future__ import annotations

try:
    from airflow.sdk.log import mask_secret
except ImportError:  # Airflow before 3.1
    from airflow.utils.log.secrets_masker import mask_secret  # type: ignore[import-not-found, no-redef]

try:
    from airflow.sdk.definitions.asset import AssetRef
except ImportError:  # Airflow 2, where nothing refers to an asset

    class AssetRef:  # type: ignore[no-redef]
        """What nothing is."""


__all__ = ["AssetRef", "mask_secret"]
