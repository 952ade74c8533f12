"""What streams need besides an engine (libraries, encoders, a display), and whether this machine has it."""

from __future__ import annotations

import json

from refusion_edge.backends.registry import Status
from refusion_edge.machine import is_installed
from refusion_edge.stream.outputs.display import has_display
from refusion_edge.stream.outputs.video import VIDEO_ENCODINGS, find_encoder
from refusion_edge.stream.system_python import PACKAGES, ask

_EXTRA = "pip install 'refusion-edge[stream]'"
_GSTREAMER = f"apt install {PACKAGES}"
_RTSP = "apt install gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-ugly"
_ANSWER_S = 10.0
# The elements that our pipelines are made of; GStreamer's own tools list all others.
_ASK_GSTREAMER = """\
import json
import gi
gi.require_version("Gst", "1.0")
from gi.repository import Gst
Gst.init(None)
names = ("appsink", "videoconvert", "nvarguscamerasrc", "x264enc", "rtph264pay")
found = [name for name in names if Gst.ElementFactory.find(name)]
try:
    gi.require_version("GstRtspServer", "1.0")
    found.append("rtsp-server")
except ValueError:
    pass
print(json.dumps({"version": Gst.version_string(), "found": found}))
"""


def find_equipment() -> dict[str, Status]:
    """What streams on this machine can use, by its name; changes nothing, and opens no camera."""
    found = {"video files": _video(), "browser view": _view(), "window": _window()}
    return {**found, **_gstreamer()}


def _video() -> Status:
    if not is_installed("av"):
        return Status(False, "PyAV is not installed", _EXTRA)
    encoders = {suffix: find_encoder(suffix) for suffix in VIDEO_ENCODINGS}
    names = ", ".join(f"{suffix} {encoder or 'none'}" for suffix, encoder in encoders.items())
    return Status(any(encoders.values()), f"encoders: {names}")


def _view() -> Status:
    if not is_installed("aiohttp"):
        return Status(False, "aiohttp is not installed", _EXTRA)
    return Status(True, "view://")


def _window() -> Status:
    if has_display():
        return Status(True, "display://0")
    return Status(False, "no X server answers at DISPLAY", "use view:// and a browser")


def _gstreamer() -> dict[str, Status]:
    answer = ask(_ASK_GSTREAMER, _ANSWER_S)
    if not answer:
        missing = "GStreamer's bindings for /usr/bin/python3 are not installed"
        return {
            "GStreamer": Status(False, missing, _GSTREAMER),
            "Jetson camera": Status(False, "needs GStreamer"),
            "RTSP output": Status(False, "needs GStreamer", f"{_GSTREAMER} and {_RTSP}"),
        }
    facts = json.loads(answer)
    version, found = facts["version"], set(facts["found"])

    def with_elements(*names: str, fix: str) -> Status:
        missing = [name for name in names if name not in found]
        return Status(False, f"{version} lacks {', '.join(missing)}", fix) if missing else Status(True, version)

    return {
        "GStreamer": with_elements("appsink", "videoconvert", fix=_GSTREAMER),
        "Jetson camera": with_elements("nvarguscamerasrc", fix=""),
        "RTSP output": with_elements("rtsp-server", "x264enc", "rtph264pay", fix=_RTSP),
    }
