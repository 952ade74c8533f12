"""Program for the system's Python: reads raw BGR frames from standard input and serves them as H.264 over RTSP.

Imports nothing from refusion_edge. Arguments: host, port, path, width, height, rate. Prints ``ready``, or what it needs, in one
line; exits when standard input closes.
"""

import contextlib
import importlib
import os
import socket
import sys
import threading
from typing import Any

_NEEDS_PACKAGES, _PORT_IN_USE = 3, 4
# In order of preference; the second is for systems without the encoder from plugins-ugly.
_ENCODERS = (
    ("x264enc", "x264enc tune=zerolatency speed-preset=ultrafast key-int-max={rate} ! rtph264pay name=pay0 config-interval=1"),
    ("vp8enc", "vp8enc deadline=1 cpu-used=8 keyframe-max-dist={rate} ! rtpvp8pay name=pay0 pt=96"),
    ("jpegenc", "jpegenc ! rtpjpegpay name=pay0 pt=26"),
)


def main() -> int:
    """Serve until standard input closes."""
    host, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    width, height, rate = (int(word) for word in sys.argv[4:7])
    try:
        gi = importlib.import_module("gi")
        gi.require_version("Gst", "1.0")
        gi.require_version("GstRtspServer", "1.0")
        glib, gst, rtsp = (importlib.import_module(f"gi.repository.{name}") for name in ("GLib", "Gst", "GstRtspServer"))
    except (ImportError, ValueError) as error:
        print(f"needs {error}", flush=True)
        return _NEEDS_PACKAGES
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            print(error.strerror, flush=True)
            return _PORT_IN_USE
    gst.init(None)
    encoder = next((text for name, text in _ENCODERS if gst.ElementFactory.find(name)), None)
    if encoder is None:
        print("needs an encoder (x264enc, vp8enc or jpegenc)", flush=True)
        return _NEEDS_PACKAGES
    sources: list[Any] = []
    factory = rtsp.RTSPMediaFactory()
    factory.set_shared(True)
    factory.set_latency(50)
    factory.set_launch(
        f"( appsrc name=source is-live=true format=time do-timestamp=true block=false max-buffers=2 leaky-type=downstream "
        f"caps=video/x-raw,format=BGR,width={width},height={height},framerate={rate}/1 ! videoconvert ! "
        f"video/x-raw,format=I420 ! {encoder.format(rate=rate)} )"
    )
    factory.connect("media-configure", lambda _, media: sources.append(media.get_element().get_by_name("source")))
    server = rtsp.RTSPServer()
    server.set_address(host)
    server.set_service(str(port))
    user = os.environ.pop("REFUSION_EDGE_RTSP_USER", "")
    if user:
        _protect(rtsp, server, factory, user, os.environ.pop("REFUSION_EDGE_RTSP_PASSWORD", ""))
    server.get_mount_points().add_factory(path, factory)
    server.attach(None)
    loop = glib.MainLoop()
    threading.Thread(target=_feed, args=(gst, sources, width * height * 3, loop.quit), daemon=True).start()
    print("ready", flush=True)
    loop.run()
    return 0


def _feed(gst: Any, sources: list[Any], size: int, end: Any) -> None:
    """Pass each frame to the current media, if there are viewers."""
    while len(image := sys.stdin.buffer.read(size)) == size:
        if sources:
            with contextlib.suppress(Exception):
                sources[-1].emit("push-buffer", gst.Buffer.new_wrapped(image))
    end()


def _protect(rtsp: Any, server: Any, factory: Any, user: str, password: str) -> None:
    """Require a user and a password from viewers."""
    authentication = rtsp.RTSPAuth()
    token = rtsp.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    authentication.add_digest(user, password, token)
    authentication.set_supported_methods(importlib.import_module("gi.repository.GstRtsp").RTSPAuthMethod.DIGEST)
    server.set_auth(authentication)
    permissions = rtsp.RTSPPermissions()
    permissions.add_permission_for_role("viewer", "media.factory.access", True)
    permissions.add_permission_for_role("viewer", "media.factory.construct", True)
    factory.set_permissions(permissions)


if __name__ == "__main__":
    sys.exit(main())
