from dag_factory import load_workflows

globals().update(load_workflows(__file__))
