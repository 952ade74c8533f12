"""Image folders, shared memory, and outputs that are refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refusion_edge.errors import BackendError, OutputError, UsageError
from refusion_edge.images.io import read_image
from refusion_edge.stream.frames import MS, FusedFrame
from refusion_edge.stream.outputs.sinks import SharedMemorySink, read_shared
from refusion_edge.stream.outputs.video import open_file_sink
from refusion_edge.stream.uri import parse_output
from tests.raising import raises
from tests.stream.conftest import camera

Stream = Callable[..., tuple[dict[str, Any], Any]]


def fused_frame(number: int, time_ms: float = 0.0) -> FusedFrame:
    image = np.full((48, 64, 3), (number * 7) % 256, np.uint8)
    return FusedFrame(image, None, None, number, round(time_ms * MS), 0, "fused")


def file_pair(frames: int = 12) -> dict[str, str]:
    return {"ir": camera("ir", live=0, frames=frames), "vis": camera("vis", live=0, frames=frames)}


def test_image_folders_and_patterns(stream: Stream) -> None:
    stream(**file_pair(), outputs=("pictures", "numbered/f_%04i.jpg"))
    assert [path.name for path in sorted(Path("pictures").iterdir())] == [f"{number:06d}.png" for number in range(12)]
    assert read_image("numbered/f_0011.jpg").shape == (48, 64, 3)


@pytest.mark.parametrize("text", ["a%%d_%04i.png", "100%%/%d.png", "x[1]_%3i.png"])
def test_names_of_earlier_images_are_known(text: str) -> None:
    sink = open_file_sink(parse_output(text), rate_hz=None)
    with sink:
        sink.write(fused_frame(0))
        sink.write(fused_frame(1))
    with raises(OutputError, "exists"):
        open_file_sink(parse_output(text), rate_hz=None, overwrite=False)
    with open_file_sink(parse_output(text), rate_hz=None) as again:
        again.write(fused_frame(0))
    assert len(list(Path().rglob("*.png"))) == 1


def test_an_earlier_image_that_cannot_be_removed_is_an_output_error() -> None:
    Path("pictures/000007.png").mkdir(parents=True)
    with raises(OutputError, "000007.png"), open_file_sink(parse_output("pictures"), rate_hz=None) as sink:
        sink.write(fused_frame(0))


def test_shared_memory_is_readable_from_outside() -> None:
    name = f"refusion-test-{time.monotonic_ns()}"
    with SharedMemorySink(parse_output(f"shm://{name}")) as sink:
        sink.write(fused_frame(5, 33))
        attached = shared_memory.SharedMemory(name)
        shown = read_shared(attached)
        attached.close()
        assert shown is not None
        assert np.array_equal(shown[0], fused_frame(5).image)
        assert shown[1] == 33 * MS
        with raises(OutputError, name), SharedMemorySink(parse_output(f"shm://{name}")) as second:
            second.write(fused_frame(0))
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(name)


def test_invalid_outputs_are_refused(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("out.xyz", "f_%04i.gif", "f_%d_%d.png", "50%_%d.png", "f_%%d.png"):
        with raises(UsageError, text):
            open_file_sink(parse_output(text), rate_hz=None)
    with raises(UsageError, "'view://'"):
        parse_output("veiw://0")
    for display in ("", ":97", "nonsense", "127.0.0.1:9"):
        monkeypatch.setenv("DISPLAY", display)
        with raises(BackendError, "DISPLAY", remedy="view://"):
            stream(**file_pair(), outputs=("display://0",))
