"""Git working trees, and checkpoints as bundles."""
