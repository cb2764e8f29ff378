"""Benches: each file in `claims/` measures one claim. Installed as `vitcache.bench`."""
