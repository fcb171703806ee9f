"""What runs the project outside of Airflow: the local stack, and the image of the compose file."""
