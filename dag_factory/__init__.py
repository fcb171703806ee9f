"""YAML workflow definitions to Airflow DAGs."""
