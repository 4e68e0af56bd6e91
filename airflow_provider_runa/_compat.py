"""Names that moved between releases of Airflow and that ``common.compat`` 1.14 does not have."""

from __future__ import annotations

from typing import Any

try:
    from airflow.sdk.log import mask_secret
except ImportError:  # Airflow before 3.1
    from airflow.utils.log.secrets_masker import mask_secret  # type: ignore[import-not-found, no-redef]


def secrets_masker() -> Any:
    """Return what masks secrets in this process. It is not part of Airflow's public interface."""
    try:
        from airflow.sdk._shared.secrets_masker import _secrets_masker
    except ImportError:  # Airflow before 3.1
        from airflow.utils.log.secrets_masker import _secrets_masker  # type: ignore[no-redef]
    return _secrets_masker()


try:
    from airflow.sdk.definitions.asset import AssetRef
except ImportError:  # Airflow 2, which has no references to assets

    class AssetRef:  # type: ignore[no-redef]
        """A class without instances, so that ``isinstance`` is always false."""


__all__ = ["AssetRef", "mask_secret", "secrets_masker"]
