"""Template and context make the prompt."""
