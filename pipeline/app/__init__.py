"""The page: restore a photograph in a browser."""
