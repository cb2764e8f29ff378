"""How many rows an image has in the cache, computed from a model's configuration, without its weights."""
