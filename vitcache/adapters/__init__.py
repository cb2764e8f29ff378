"""Adapters that put the cache under other libraries' models."""
