"""Coding agents as Airflow workflow steps."""

__version__ = "0.1.0"
