"""WebDataset shards: made, read, fetched, verified."""
