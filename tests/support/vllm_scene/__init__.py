"""An engine without a model: vLLM's scheduler, encoder cache and workers, as the plug-in sees them."""
