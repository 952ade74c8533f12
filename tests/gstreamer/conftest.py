"""Pipelines with the element, in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from refusion_edge.arrays import Uint8Array
from refusion_edge.gstreamer.__main__ import main
from refusion_edge.gstreamer.pixels import default_layout, write_pixels


class Launch(Protocol):
    def __call__(self, *words: object, fails: bool = False) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables with which GStreamer finds the element."""
    folder = tmp_path_factory.mktemp("plugins")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    # With a registry of its own: that of the user keeps a plugin out for good once it could not be loaded.
    own = {**inherited, "GST_PLUGIN_PATH": str(folder), "GST_REGISTRY": str(folder / "registry"), "GST_DEBUG_NO_COLOR": "1"}
    found = [shutil.which(name) for name in ("gst-launch-1.0", "gst-inspect-1.0")]
    if not (all(found) and _finds_python(own)):
        pytest.skip("needs gstreamer1.0-tools and gstreamer1.0-python3-plugin-loader")
    if main(["--folder", str(folder)]):
        pytest.skip("needs the version of Python that GStreamer runs")
    return own


def _finds_python(environment: dict[str, str]) -> bool:
    """Whether the loader of elements in Python is installed. On a busy machine, a look at all plugins may take too long."""
    for _ in range(3):
        if subprocess.run(["gst-inspect-1.0", "python"], capture_output=True, check=False, env=environment).returncode == 0:
            return True
        Path(environment["GST_REGISTRY"]).unlink(missing_ok=True)
    return False


@pytest.fixture
def launch(environment: dict[str, str]) -> Launch:
    """Run ``gst-launch-1.0``; without a message of GStreamer about misuse, except one that every element in Python gets."""

    def run(*words: object, fails: bool = False) -> subprocess.CompletedProcess[str]:
        line = [part for word in words for part in str(word).split()]
        done = subprocess.run(
            ["gst-launch-1.0", "-q", *line], capture_output=True, text=True, check=False, timeout=120, env=environment
        )
        said = [text for text in done.stderr.splitlines() if "should be floating" not in text]
        assert (done.returncode != 0) == fails, done.stderr
        assert not [text for text in said if "CRITICAL" in text or "WARNING **" in text or "Traceback" in text], done.stderr
        return done

    return run


def make_pixels(image: Uint8Array, format_name: str) -> bytes:
    """An image in memory of its own, as ``write_pixels`` lays it out; what it leaves untouched is not 0."""
    memory = np.full(default_layout(format_name, (image.shape[1], image.shape[0])).nbytes, 99, np.uint8)
    write_pixels(image, format_name, memory)
    return memory.tobytes()


def raw(path: Path, format_name: str, size_wh: tuple[int, int], rate: str = "25/1") -> str:
    """The beginning of a pipeline that reads frames without padding from a file."""
    width, height = size_wh
    return (
        f"filesrc location={path} ! rawvideoparse format={format_name.lower().replace('_', '-')} width={width} height={height} "
        f"framerate={rate}"
    )


def options(**values: Any) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())
