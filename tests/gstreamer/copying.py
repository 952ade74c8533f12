"""Program for the system's Python, with ``copies.c`` loaded: how often buffers are copied on their way in and out.

Prints a line for each format: its name, the bytes of its planes, and those that were moved on the way in and on the way out.
"""

import ctypes
import os

import gi

gi.require_version("Gst", "1.0")
from gi.repository import Gst

Gst.init(None)
WIDTH, HEIGHT = 640, 480


def main():
    Gst.ElementFactory.make("refusion")  # loads the plugin, and with it our packages
    import numpy as np

    from refusion_edge.gstreamer.buffers import make_buffer, read_buffer
    from refusion_edge.gstreamer.pixels import COLOR_FORMATS, SINK_FORMATS, default_layout

    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    library.count_from.argtypes, library.counted.restype = [ctypes.c_size_t], ctypes.c_size_t

    def moved(work):
        work()  # once for what is only done once
        library.count_from(WIDTH * HEIGHT // 8)
        work()
        found = library.counted()
        library.count_from(0)
        return found

    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for name in SINK_FORMATS:
        layout = default_layout(name, (WIDTH, HEIGHT))
        buffer = Gst.Buffer.new_wrapped(bytes(layout.nbytes))
        out = moved(lambda name=name: make_buffer(image, name)) if name in COLOR_FORMATS else 0
        print(name, layout.nbytes, moved(lambda buffer=buffer, layout=layout: read_buffer(buffer, layout)), out)


main()
