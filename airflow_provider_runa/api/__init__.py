"""Runa's API as it is: ``models`` of what is sent and answered, the ``errors`` it may answer, and the ``client``.

Nothing in here knows Airflow. Import from the modules: this package imports none of them itself, so that a
reader of ``models`` and ``errors`` (as ``placement`` is) does not load an HTTP library.
"""
