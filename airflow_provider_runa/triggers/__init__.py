"""Airflow triggers of the Runa provider."""
