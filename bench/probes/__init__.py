"""The items of `vitcache.bench.probe`."""
