"""Every command in the documentation runs as written, shortened where it would take long, or a named test covers it."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

from examples.two_rates import Swing, write_sequences
from refusion_edge.cli import main
from refusion_edge.errors import InputError, MissingDependencyError
from refusion_edge.images.io import read_image, write_image
from refusion_edge.images.pairs import read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, write_pth
from refusion_edge.network.weights import weights_path
from tests.conftest import ROOT, one_sentence

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RunCli: TypeAlias = Callable[..., tuple[int, str, str]]

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?:sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)

SHORTER = {
    "stream": "--duration-s 2",
    "bench": "--loaded --no-limits --warmup-ms 0 --warmup 1 --iterations 3 --windows 3 --seconds 0.1",
    "train": "--threads 1 --set run.steps=2 --set run.batch=1 --set run.crop_px=16 --set run.late_crop_px=16 "
    "--set validation.crops=1 --set validation.images=1",
}
"""Options added to a verb to shorten it; the last one given counts."""

SIZES = "40x48"

ELSEWHERE = {
    "refusion-edge build --task ir_vis --precision int8": "tests/backends/tensorrt/test_rtx.py",
    "refusion-edge verify bundles/ir_vis-int8": "tests/backends/tensorrt/test_rtx.py",
    "refusion-edge selftest": "tests/selftest/test_selftest.py",
    "torchrun": "tests/train/test_ranks.py",
    "cmake": "tests/kernels/c_library/conftest.py",
    "build/installed/bin/fuse_pgm": "tests/kernels/c_library/test_c_library.py",
    "cc app.c": "tests/kernels/c_library/test_consumers.py",
    "/usr/bin/python3 -m venv env": "tests/gstreamer/test_element.py",
    "env/bin/": "tests/gstreamer/test_element.py",
    "gst-inspect-1.0 refusion": "tests/gstreamer/test_element.py",
}
"""Commands that need minutes or several processes, by their beginning, and the test that covers them."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command line of a page."""

    page: Path
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)


def commands(page: Path) -> list[Command]:
    found = []
    for block in BLOCK.finditer(page.read_text()):
        console = block[0].startswith("```console")
        for line in block[1].splitlines():
            if console and not line.startswith("$ "):
                continue  # output
            for part in re.split(r"\s&&\s", line.removeprefix("$ ")):
                words = shlex.split(part, comments=True)
                if words:
                    found.append(Command(page, tuple(words)))
    return found


ALL = [command for page in PAGES for command in commands(page)]


def of(*programs: str) -> list[Command]:
    return [command for command in ALL if command.words[0] in programs and not covered(command)]


def covered(command: Command) -> bool:
    return command.text.startswith(tuple(ELSEWHERE))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documented") / "bundle"
    words = ("build", "--task", "ir_vis", "--precision", "fp32", "--backend", "onnxruntime", "-o", str(folder))
    assert main(list(words)) == 0
    return folder


@pytest.fixture
def documented_files(bundle: Path) -> None:
    """The files that the pages name, in the working folder."""
    street = sample_paths("ir_vis")[1]
    infrared, visible = read_image(street.a), read_image(street.b)
    for name in ("infrared.png", "ir.png", "later-ir.png"):
        write_image(name, infrared)
    # The middle of it, as wide as 50 degrees are in an image of 74.
    height, width = infrared.shape[:2]
    share = math.tan(math.radians(25)) / math.tan(math.radians(37))
    top, left = (round(side * (1 - share) / 2) for side in (height, width))
    write_image("narrow-ir.png", infrared[top : height - top, left : width - left])
    for name in ("visible.png", "vis.png", "later-vis.png"):
        write_image(name, visible)
    for pair in sample_paths("ir_vis"):
        for folder, file in (("ir", pair.a), ("vis", pair.b)):
            Path("DIR", folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, Path("DIR", folder, f"{pair.name}{file.suffix}"))
    write_sequences(read_pair(street), Path("cameras"), Swing(seconds=0.3))
    with contextlib.suppress(ImportError):
        write_pth("ReFusion_IVIF.pth", Checkpoint(None, read_checkpoint(weights_path("ir_vis")).state))
    for name in ("a", "b"):
        shutil.copytree(bundle, Path("bundles", name))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(c.page == page for c in of("refusion-edge"))], ids=lambda p: p.name
)
def test_commands_of_a_page_run_in_their_order(page: Path, documented_files: None, bundle: Path, run_cli: RunCli) -> None:
    absent: list[str] = []
    if "bench bundles/ir_vis-fp16-onnxruntime" in page.read_text():  # other pages build it themselves
        shutil.copytree(bundle, "bundles/ir_vis-fp16-onnxruntime")
    if "before.json" in page.read_text():
        run_cli("bench", "ir_vis", "--sizes", SIZES, "--json", "before.json", *shlex.split(SHORTER["bench"]))
    for command in [command for command in of("refusion-edge") if command.page == page]:
        verb, *rest = command.words[1:]
        words = [*rest, *shlex.split(SHORTER.get(verb, ""))]
        if verb == "bench" and "--a" not in rest:
            words += ["--sizes", SIZES]
        code, out, err = run_cli(verb, *words)
        if code == MissingDependencyError.exit_code or (absent and code == InputError.exit_code):
            # An explicit request for what this machine lacks ends like this; later commands may need what it would have made.
            assert one_sentence(err.splitlines()[-1]), (command.text, err)
            absent.append(command.text)
        else:
            # Three iterations may be unstable or miss the rate, which bench reports with 1.
            assert code == 0 or (verb == "bench" and code == 1 and "ms" in out), (command.text, code, err)
    if absent:
        pytest.skip(f"this machine lacks what these need: {'; '.join(absent)}")


@pytest.mark.slow
@pytest.mark.parametrize("command", of("python"), ids=lambda command: command.text)
def test_scripts_of_the_pages_know_their_options(command: Command) -> None:
    """Measuring takes minutes; starting and knowing these options does not."""
    flag, module, *words = command.words[1:]
    if flag == "-m" and module == "venv":
        return
    assert flag == "-m"
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    if "No module named" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    for option in [word for word in words if word.startswith("-")]:
        assert option in done.stdout, option


def test_make_targets_and_extras_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in of("make"):
        assert command.words[1] in targets, command.text
    for command in of("pip"):
        for names in re.findall(r"\[([\w,-]+)\]", command.text):
            assert set(names.split(",")) <= set(extras), command.text


def test_every_command_is_of_a_tested_kind() -> None:
    # The last two are for the reader's machine: system packages, and the tests of a device.
    known = {"refusion-edge", "python", "python3", "make", "pip", ".", ".ci/run", "sudo", "pytest"}
    unknown = [command.text for command in ALL if command.words[0] not in known and not covered(command)]
    assert not unknown, unknown
    assert len(ALL) > 30
    for beginning, test in ELSEWHERE.items():
        assert any(command.text.startswith(beginning) for command in ALL), beginning
        assert (ROOT / test).is_file(), test
