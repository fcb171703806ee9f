from airflow_agent_provider.mirror.maintenance import maintenance_dag

dag = maintenance_dag()
