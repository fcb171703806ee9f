"""A whole Airflow with its stand-ins on one machine, for the demo, the tests and the benchmarks."""
