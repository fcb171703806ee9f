from dag_factory import load_workflows  # each definition beside this file becomes an Airflow DAG

globals().update(load_workflows(__file__))
