"""The C++ kernels for the CPU, and the training operations built on them."""
