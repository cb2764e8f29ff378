"""The Triton kernels, each in a file with its launcher. Installed as `vitcache.triton_kernels`."""
