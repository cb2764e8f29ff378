"""The Triton kernels, one family per file: kernel, then launcher. Installed as `vitcache.triton_kernels`."""
