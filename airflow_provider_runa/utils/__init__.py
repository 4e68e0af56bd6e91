"""Helpers that operators, sensors and triggers share, one subject per module. They are not for DAG authors."""
