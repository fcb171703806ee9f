"""Scripted model servers and vendor stand-ins: a run without key and without cost."""
