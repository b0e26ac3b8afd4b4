"""Trained models: saved, found, published."""
