"""The device: the CUDA runtime or its stand-in, streams and events, and the torch modes of a thread."""
