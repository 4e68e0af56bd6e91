"""Airflow sensors of the Runa provider."""
