"""The commands: ``runa-status`` and ``runa-reconcile``. They only read."""
