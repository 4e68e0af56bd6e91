"""Airflow hooks of the Runa provider."""
