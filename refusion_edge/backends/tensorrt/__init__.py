"""What TensorRT and TensorRT-RTX share: settings, versions, running a plan, and why one does not load.

The two differ in the module they are imported from and in what that module offers; every difference is asked for where it
matters (``hasattr``), never guessed from a version. Belongs here: everything that running needs. Does not belong here:
compiling a plan, which is ``refusion_edge.export.targets.tensorrt``.
"""
