"""Adapters that connect the cache to other libraries: transformers, torch.distributed and Prometheus."""
