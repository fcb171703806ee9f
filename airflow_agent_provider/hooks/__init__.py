"""One module per agent, one per store."""
