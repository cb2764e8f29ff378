"""Orders of eviction; `vitcache.policy` says what one is."""
