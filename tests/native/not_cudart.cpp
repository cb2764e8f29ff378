// A library that can be opened and is no CUDA runtime: it lacks every entry point but one.
extern "C" __attribute__((visibility("default"))) int cudaGetLastError() { return 0; }
