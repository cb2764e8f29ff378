"""Traffic: made-up and recorded traces of image requests, and what a cache would have done with them."""
