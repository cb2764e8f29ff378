"""`CudaError`, the only exception class of vitcache; all other errors are Python's."""


class CudaError(RuntimeError):
    """A call of the CUDA runtime failed, or the process has no CUDA runtime or no CUDA device.

    The message names the call and the CUDA error, or lists the places that were searched for a runtime.

    Examples
    --------
    >>> from vitcache import CudaError, EmbeddingCache
    >>> try:
    ...     cache = EmbeddingCache(4, device="cuda", device_bytes=1 << 20)
    ... except CudaError:
    ...     cache = EmbeddingCache(4, device="cpu", device_bytes=1 << 20)
    >>> len(cache)
    0
    """
