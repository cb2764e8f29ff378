"""Measurements, one claim per file; installed as `vitcache.bench`."""
