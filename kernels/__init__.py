"""GPU and CPU kernels of the networks, each with a readable reference.

Belongs here, too: the schedules that launch them, the C library and the PTX emulator.

Does not belong here: image files, bundles, options of the command line.
"""
