"""YAML workflow definitions to Airflow DAGs."""

from dag_factory.loader import load_workflows

__all__ = ["load_workflows"]
