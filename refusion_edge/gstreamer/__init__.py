"""Fusion as an element of GStreamer pipelines: ``refusion``, with the sink pads ``ir`` and ``vis``.

``python -m refusion_edge.gstreamer`` registers it with GStreamer. Importing this package does not need GStreamer.
"""
