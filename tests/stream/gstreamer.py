"""Whether the bindings that our programs under the system's Python need are installed."""

from __future__ import annotations

import pytest

from refusion_edge.stream.system_python import ask

_ASK = """\
import gi
for name in ("Gst", "GstApp", "GstVideo"):
    gi.require_version(name, "1.0")
print("found")
"""

needs_gstreamer = pytest.mark.skipif(not ask(_ASK, 60), reason="needs GStreamer's Python bindings of the system")
