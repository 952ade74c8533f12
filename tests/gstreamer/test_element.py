"""The element in pipelines: what comes out is what the loop in Python makes, and bad input ends in order."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.errors import MissingDependencyError
from refusion_edge.fuser import load
from refusion_edge.gstreamer import __main__ as installer
from refusion_edge.gstreamer.pixels import SINK_FORMATS, default_layout, to_array
from refusion_edge.stream.frames import Frame
from refusion_edge.stream.pairing.pairer import Pairer
from refusion_edge.stream.processing.processor import Processor
from tests.conftest import ROOT
from tests.gstreamer.conftest import Launch, make_pixels, raw

pytestmark = pytest.mark.slow

SIZE_WH, COUNT, PERIOD_NS = (64, 48), 12, 40_000_000
FAST = "refusion name=f network=fast backend=onnxruntime"


@pytest.fixture
def ir(rng: np.random.Generator) -> Array:
    """A warm spot that moves, in 14 bits."""
    rows, columns = np.mgrid[: SIZE_WH[1], : SIZE_WH[0]]
    spots = [3000 * np.exp(-((rows - 20) ** 2 + (columns - 5 * index) ** 2) / 60) for index in range(COUNT)]
    return (8000 + np.stack(spots) + rng.normal(0, 20, (COUNT, *rows.shape))).astype("<u2")


@pytest.fixture
def vis(rng: np.random.Generator) -> Array:
    coarse = rng.integers(30, 220, (COUNT, SIZE_WH[1] // 2, SIZE_WH[0] // 2, 3), np.uint8)
    return coarse.repeat(2, 1).repeat(2, 2)


def looped(ir: Array, vis: Array) -> list[Array]:
    """The frames that a loop over pairer and processor makes."""
    pairer = Pairer()
    with load("ir_vis", network="fast", backend="onnxruntime", streaming=True) as fuser:
        processor, pairs = Processor(fuser.backend), []
        for index, images in enumerate(zip(ir, vis, strict=True)):
            time_ns = index * PERIOD_NS
            for side, image in zip(("ir", "vis"), images, strict=True):
                pairs += pairer.push(Frame(side, image, index, time_ns, time_ns, time_ns)).pairs
        return [processor.process(pair).image for pair in (*pairs, *pairer.flush().pairs)]


def frames(path: Path, format_name: str, size_wh: tuple[int, int] = SIZE_WH) -> list[Array]:
    layout, data = default_layout(format_name, size_wh), path.read_bytes()
    assert len(data) % layout.nbytes == 0
    return [to_array(data[start : start + layout.nbytes], layout) for start in range(0, len(data), layout.nbytes)]


def write(name: str, images: Array, format_name: str) -> Path:
    made = (image.tobytes() if format_name == "GRAY16_LE" else make_pixels(image, format_name) for image in images)
    Path(name).write_bytes(b"".join(made))
    return Path(name).resolve()


@pytest.mark.parametrize("format_name", ["BGRx", "BGR", "NV12", "I420", "GRAY8"])
def test_a_pipeline_makes_what_the_loop_makes(launch: Launch, ir: Array, vis: Array, format_name: str) -> None:
    a, b = write("ir.raw", ir, "GRAY16_LE"), write("vis.raw", vis, format_name)
    seen = np.stack(frames(b, format_name))
    launch(
        f"{FAST} ! video/x-raw,format={format_name} ! filesink location=out.raw",
        f"{raw(a, 'GRAY16_LE', SIZE_WH)} ! f.ir {raw(b, format_name, SIZE_WH)} ! f.vis",
    )
    expected = looped(ir, seen)
    assert len(expected) == COUNT
    fused = b"".join(make_pixels(image, format_name) for image in expected)
    assert Path("out.raw").read_bytes() == fused


def test_the_cheapest_format_that_is_taken_is_made(launch: Launch, ir: Array, vis: Array) -> None:
    a, b = write("ir.raw", ir, "GRAY16_LE"), write("vis.raw", vis, "NV12")
    sources = f"{raw(a, 'GRAY16_LE', SIZE_WH)} ! f.ir {raw(b, 'NV12', SIZE_WH)} ! f.vis"
    launch(f"{FAST} ! filesink location=any.raw {sources}")
    launch(f"{FAST} ! video/x-raw,format=BGRx ! filesink location=bgrx.raw {sources}")
    assert Path("any.raw").read_bytes() == Path("bgrx.raw").read_bytes()
    # Encoders take YUV; the caps say whose.
    launch(f"{FAST} ! x264enc ! h264parse ! filesink location=out.h264 {sources}")
    assert Path("out.h264").stat().st_size > 500


def test_different_sizes_without_a_rig_are_an_error_with_its_remedy(launch: Launch, ir: Array, vis: Array) -> None:
    a, b = write("ir.raw", ir, "GRAY16_LE"), write("vis.raw", vis[:, :40, :52], "GRAY8")
    sources = f"{raw(a, 'GRAY16_LE', SIZE_WH)} ! f.ir {raw(b, 'GRAY8', (52, 40))} ! f.vis"
    done = launch(f"{FAST} ! filesink location=out.raw {sources}", fails=True)
    assert "48x64" in done.stderr
    assert "40x52" in done.stderr
    launch(f"{FAST} resize=true ! filesink location=out.raw {sources}")
    assert len(frames(Path("out.raw"), "GRAY8", (52, 40))) == COUNT


def test_caps_that_change_in_the_middle_keep_the_size_of_the_video(launch: Launch, ir: Array, vis: Array) -> None:
    a = write("ir.raw", ir, "GRAY16_LE")
    first, second = write("first.raw", vis[:6], "NV12"), write("second.raw", vis[6:, :40, :52], "BGRx")
    launch(
        f"{FAST} ! video/x-raw,format=BGRx ! filesink location=out.raw",
        f"{raw(a, 'GRAY16_LE', SIZE_WH)} ! f.ir concat name=c ! f.vis",
        f"{raw(first, 'NV12', SIZE_WH)} ! c. {raw(second, 'BGRx', (52, 40))} ! c.",
    )
    fused = frames(Path("out.raw"), "BGRx")
    assert len(fused) == COUNT
    assert np.array_equal(fused[0], looped(ir, np.stack(frames(first, "NV12") + [vis[0]] * 6))[0])
    # The picture of another camera in the old size, not the old one.
    assert np.abs(fused[6].astype(int) - fused[5]).mean() > 5


def test_a_pad_that_ends_ends_the_video_after_its_last_pair(launch: Launch, ir: Array, vis: Array) -> None:
    a, b = write("ir.raw", ir[:5], "GRAY16_LE"), write("vis.raw", vis, "GRAY8")
    for few, many in (("ir", "vis"), ("vis", "ir")):
        launch(
            f"{FAST} ! video/x-raw,format=BGRx ! filesink location=out.raw",
            f"{raw(a, 'GRAY16_LE', SIZE_WH)} ! f.{few} {raw(b, 'GRAY8', SIZE_WH)} ! f.{many}",
        )
        assert len(frames(Path("out.raw"), "BGRx")) == 5
    Path("empty.raw").write_bytes(b"")
    launch(f"{FAST} ! filesink location=none.raw videotestsrc num-buffers=0 ! f.ir {raw(b, 'GRAY8', SIZE_WH)} ! f.vis")
    assert Path("none.raw").read_bytes() == b""


def test_a_file_that_runs_ahead_loses_no_frame(launch: Launch, ir: Array, vis: Array) -> None:
    """The infrared file could be read to its end while the other source takes its time."""
    a = write("ir.raw", np.tile(ir, (8, 1, 1)), "GRAY16_LE")
    b = write("vis.raw", np.tile(vis, (8, 1, 1, 1)), "GRAY8")
    launch(
        f"{FAST} ! filesink location=out.raw {raw(a, 'GRAY16_LE', SIZE_WH)} ! f.ir",
        f"{raw(b, 'GRAY8', SIZE_WH)} ! identity sleep-time=3000 ! f.vis",
    )
    assert len(frames(Path("out.raw"), "GRAY8")) == 8 * COUNT


@pytest.mark.parametrize(
    ("properties", "named"),
    [
        ("gain=brightest", "brightest"),
        ("network=slow", "slow"),
        ("rig=nowhere.yaml", "nowhere.yaml"),
        ("bundle=nowhere", "nowhere"),
    ],
)
def test_a_property_that_cannot_be_used_stops_the_start(launch: Launch, properties: str, named: str) -> None:
    sources = "videotestsrc num-buffers=2 ! f.ir videotestsrc num-buffers=2 ! f.vis"
    done = launch(f"refusion name=f {properties} ! fakesink {sources}", fails=True)
    assert named in done.stderr


def test_buffers_without_times_are_refused(launch: Launch, ir: Array) -> None:
    a = write("ir.raw", ir, "GRAY16_LE")
    done = launch(
        f"{FAST} ! fakesink {raw(a, 'GRAY16_LE', SIZE_WH, '0/1')} ! f.ir videotestsrc num-buffers=3 ! "
        "video/x-raw,width=64,height=48,format=GRAY8 ! f.vis",
        fails=True,
    )
    assert "time" in done.stderr


@pytest.mark.parametrize(
    ("case", "printed"),
    [
        ("stalled", ["stopped"]),
        ("seek", ["ended", "10"]),
        ("seek in one", ["refused", "ended"]),
        ("again", ["ended"] * 2),
        ("flushed", ["ended"]),
        ("freed", ["freed"] * 3),
    ],
)
def test_a_pipeline_stops_seeks_and_starts_again(environment: dict[str, str], case: str, printed: list[str]) -> None:
    script = ROOT / "tests/gstreamer/stopping.py"
    words = ["/usr/bin/python3", str(script), case]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == printed, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("case", "printed"),
    [
        ("refused", ["error", "ok"]),
        ("refused at the end", ["waits", "error", "ended"]),
        ("flushed one after the other", ["waits", "flushing", "0", "40", "80"]),
        ("flushed alone", ["ok", "ok", "ok", "ok", "ok", "flushing"]),
        ("flushed after the end", ["eos", "ended"]),
        ("failed start", ["failure", "1", "2"]),
    ],
)
def test_the_threads_of_two_cameras_do_not_disturb_each_other(
    environment: dict[str, str], case: str, printed: list[str]
) -> None:
    script = ROOT / "tests/gstreamer/threads.py"
    words = ["/usr/bin/python3", str(script), case]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == printed, done.stderr
    assert "Traceback" not in done.stderr


def test_a_plane_is_copied_once_on_its_way_in_and_once_on_its_way_out(environment: dict[str, str], tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path / "copies.so"
    # Without built-in functions, as the compiler would replace these by themselves.
    words = ["-shared", "-fPIC", "-O1", "-fno-builtin", "-Wall", "-o", str(library), str(ROOT / "tests/gstreamer/copies.c")]
    subprocess.run([compiler, *words, "-ldl"], check=True)
    script = ROOT / "tests/gstreamer/copying.py"
    preloaded = {**environment, "LD_PRELOAD": str(library)}
    done = subprocess.run(
        ["/usr/bin/python3", str(script)], env=preloaded, capture_output=True, text=True, check=True, timeout=60
    )
    found = {name: tuple(map(int, counts)) for name, *counts in map(str.split, done.stdout.splitlines())}
    assert found.keys() == set(SINK_FORMATS)
    for name, (planes, way_in, way_out) in found.items():
        assert way_in <= planes, name
        assert way_out <= planes, name
    # It counts at all: gray is not converted.
    assert found["GRAY8"] == (640 * 480,) * 3


def test_the_plugin_is_written_removed_and_refused_for_another_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    path = tmp_path / "data/gstreamer-1.0/plugins/python/refusion.py"
    assert installer.main([]) == 0
    assert path.is_file()
    assert installer.main(["--remove"]) == 0
    assert not path.exists()
    assert installer.main(["--remove"]) == 0
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 3.9\n")
    python.chmod(0o755)
    monkeypatch.setattr(installer, "_SYSTEM_PYTHON", str(python))
    assert installer.main([]) == MissingDependencyError.exit_code
    assert "3.9" in capsys.readouterr().err
    assert not path.exists()
