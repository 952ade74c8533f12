"""Fusion as an element of GStreamer pipelines: ``refusion``, with the sink pads ``ir`` and ``vis``.

``python -m refusion_edge.gstreamer`` makes GStreamer find it. Importing this package does not need GStreamer.
"""
