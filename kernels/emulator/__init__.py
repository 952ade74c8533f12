"""An emulator of PTX, the portable assembly of NVIDIA GPUs, with a checker and counters; it takes no GPU."""
