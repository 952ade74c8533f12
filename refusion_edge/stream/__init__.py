"""Live camera pairs: sources, pairing by sensor time, thermal gain, the running pipeline, and its outputs.

Each module has one job; only ``run`` starts threads. Modules exchange the data classes of ``frames``. Color images are BGR,
OpenCV's channel order, which cameras deliver and every output accepts.
"""

# OpenCV first: after PyAV, whose wheel brings a libxcb of its own, OpenCV's windows hang.
import cv2 as _cv2  # noqa: F401
