// A library that can be opened and is not a CUDA runtime: it has one of the entry points and lacks the rest.
extern "C" __attribute__((visibility("default"))) int cudaGetLastError() { return 0; }
