"""Restoring people's own photographs: from Python, from the command line."""
