"""Airflow operators of the Runa provider."""
