"""Converters from the layout of the published DA-CLIP weights to the modules here."""
