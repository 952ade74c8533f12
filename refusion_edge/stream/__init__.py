"""Live camera pairs: sources, pairing by sensor time, thermal gain, the running pipeline, and its outputs.

Each module has one job; only ``run`` starts threads. Modules exchange the data classes of ``frames``. Color images are BGR,
OpenCV's channel order, which cameras deliver and every output accepts.
"""
