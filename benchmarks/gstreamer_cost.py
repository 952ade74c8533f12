"""Processor time per pair of the element ``refusion``, without the network, compared with a loop in Python.

Both fuse the same 640x480 frames, GRAY16_LE infrared and a visible format, with a network that returns the visible plane at
once; the loop has its frames as arrays already. The time of the pipeline without the element is subtracted from that of the
one with it. Runs are interleaved.

python -m benchmarks.gstreamer_cost [--pairs 300] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from refusion_edge.gstreamer.__main__ import write_plugin
from refusion_edge.gstreamer.pixels import default_layout

_FORMATS = ("GRAY8", "NV12", "BGRx")
_PROGRAM = """
import json, resource, sys, time
import gi
gi.require_version("Gst", "1.0")
from gi.repository import Gst

class Passing:
    name, uint8_range, takes_uint8 = "passing", None, False
    def fuse(self, a, b):
        return b

def seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

Gst.init(None)
kind, format_name, pairs = sys.argv[1], sys.argv[2], int(sys.argv[3])
names = "GRAY16_LE", format_name
sources = [f"multifilesrc location={name} loop=true num-buffers={pairs} ! rawvideoparse width=640 height=480 framerate=30/1 "
           f"format={name.lower().replace('_', '-')} ! " for name in names]
if kind == "loop":
    import numpy as np
    from refusion_edge.gstreamer.pixels import default_layout, to_array
    from refusion_edge.stream.frames import Frame
    from refusion_edge.stream.pairing.pairer import Pairer
    from refusion_edge.stream.processing.processor import Processor
    ir, vis = (to_array(open(name, "rb").read(), default_layout(name, (640, 480))) for name in names)
    pairer, processor = Pairer(), Processor(Passing())
    started = seconds()
    for index in range(pairs):
        time_ns = index * 33_333_333
        for side, image in (("ir", ir), ("vis", vis)):
            for pair in pairer.push(Frame(side, image, index, time_ns, time_ns, time_ns)).pairs:
                processor.process(pair)
else:
    if kind == "element":
        Gst.ElementFactory.make("refusion")  # loads the plugin
        from refusion_edge.stream.run import coupling
        class Fuser:
            network, backend = "passing", Passing()
            def __exit__(self, *_): pass
        coupling.load = lambda *_, **__: Fuser()
        text = f"refusion name=f ! fakesink sync=false {sources[0]} f.ir {sources[1]} f.vis"
    else:
        text = " ".join(source + " fakesink sync=false" for source in sources)
    pipeline = Gst.parse_launch(text)
    started = seconds()
    pipeline.set_state(Gst.State.PLAYING)
    message = pipeline.get_bus().timed_pop_filtered(Gst.CLOCK_TIME_NONE, Gst.MessageType.EOS | Gst.MessageType.ERROR)
    assert message.type == Gst.MessageType.EOS, message.parse_error()
    pipeline.set_state(Gst.State.NULL)
print(json.dumps(1000 * (seconds() - started) / pairs))
"""


def main() -> int:
    """Print a line for each format."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_plugin(Path(name) / "python" / "refusion.py")
        folders = [path for path in sys.path if path and "python3" not in Path(path).name]
        environment = {
            **os.environ, "GST_PLUGIN_PATH": name, "GST_REGISTRY": f"{name}/registry", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(folders),
        }  # fmt: skip
        rng = np.random.default_rng(1)
        for format_name in ("GRAY16_LE", *_FORMATS):
            size = default_layout(format_name, (640, 480)).nbytes
            noise = rng.integers(7000, 9000, size // 2, np.uint16) if format_name == "GRAY16_LE" else rng.bytes(size)
            Path(name, format_name).write_bytes(bytes(noise))
        for format_name in _FORMATS:
            taken: dict[str, list[float]] = {"bare": [], "element": [], "loop": []}
            for _ in range(options.rounds):
                for kind, times in taken.items():
                    command = ["/usr/bin/python3", "-c", _PROGRAM, kind, format_name, str(options.pairs)]
                    done = subprocess.run(command, env=environment, cwd=name, stdout=subprocess.PIPE, text=True, check=True)
                    times.append(json.loads(done.stdout))
            ms = {kind: statistics.median(times) for kind, times in taken.items()}
            element = ms["element"] - ms["bare"]
            print(
                f"{format_name:6} element {element:.2f} ms, loop {ms['loop']:.2f} ms, difference {element - ms['loop']:.2f} ms"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
