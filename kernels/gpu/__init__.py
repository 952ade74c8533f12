"""The GPU kernels in Triton, each with its NumPy reference, and the schedule that launches them for a frame."""
