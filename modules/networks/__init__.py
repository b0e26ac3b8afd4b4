"""Networks that restore."""
