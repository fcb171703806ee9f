"""The vendors' wires on which the scripted model answers, one module each."""
