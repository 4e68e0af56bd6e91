"""Runa's API as it is: ``models``, ``errors``, ``retries``, ``client``.

Nothing in here knows Airflow. Import from the modules: this package imports none of them itself, so that a
reader of ``models`` and ``errors`` (as ``placement`` is) does not load an HTTP library.
"""
