"""Captioning networks."""
