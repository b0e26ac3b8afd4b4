"""Shards of degraded and clean image pairs, their making, and the DataModules that read them."""
