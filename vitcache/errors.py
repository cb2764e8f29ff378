"""The one exception of our own; every other error is one of Python's."""


class CudaError(RuntimeError):
    """A call of the CUDA runtime failed, or there is no CUDA runtime to call."""
