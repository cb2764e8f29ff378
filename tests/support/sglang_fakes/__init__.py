"""Stands in for SGLang in tests without it: requests, a model, the hook registry, and its modules."""
