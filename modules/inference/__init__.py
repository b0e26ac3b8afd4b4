"""Restoring images: embed, prompt, tile, sample."""
