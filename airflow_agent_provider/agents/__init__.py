"""What an agent is: contract, failure classes, identity. Imports neither Airflow nor a vendor."""
