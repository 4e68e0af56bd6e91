"""Airflow transfer operators of the Runa provider."""
