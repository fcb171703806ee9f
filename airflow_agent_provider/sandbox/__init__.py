"""The box an agent runs in, and the door to its model."""
