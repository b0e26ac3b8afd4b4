"""Where pairs of a degraded and a clean image come from."""
