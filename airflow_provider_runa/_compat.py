"""Names that moved between releases of Airflow and that ``common.compat`` 1.14 does not have."""

from __future__ import annotations

try:
    from airflow.sdk.log import mask_secret
except ImportError:  # Airflow before 3.1
    from airflow.utils.log.secrets_masker import mask_secret  # type: ignore[import-not-found, no-redef]

try:
    from airflow.sdk.definitions.asset import AssetRef
except ImportError:  # Airflow 2, which has no references to assets

    class AssetRef:  # type: ignore[no-redef]
        """A class without instances, so that ``isinstance`` is always false."""


__all__ = ["AssetRef", "mask_secret"]
