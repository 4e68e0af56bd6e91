"""Helpers that operators, sensors and triggers share; each module has one subject. Not for DAG authors."""
