"""The device: its CUDA runtime or the stand-in for one, its streams, and the modes of a thread."""
