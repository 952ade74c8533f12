"""Online refinement in a running stream: adopted between frames, reported, and off by default."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.errors import AlignmentError, UsageError
from refusion_edge.fuser import Fuser
from refusion_edge.images.io import read_image, write_image
from refusion_edge.images.pairs import read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.rig.file import write_rig
from refusion_edge.rig.model import Matrix, Rig, RigAlignment, RigSource, to_rows
from refusion_edge.stream.run.refinement import Verdict
from refusion_edge.stream.run.session import StreamSession
from refusion_edge.stream.run.settings import StreamSettings
from refusion_edge.tasks import find_task
from tests.raising import raises
from tests.stream.conftest import MeanBackend, camera

RunCli = Callable[..., tuple[int, str, str]]


class Pushing:
    """A refinement that moves the view by two pixels each time, up to its bound, and then refuses or resets."""

    bound_px = 4.0

    def __init__(self, *, fails: bool = False) -> None:
        self.shift_px = 0.0
        self.seen: list[tuple[Array, Array]] = []
        self.threads: set[str] = set()
        self._fails = fails

    @property
    def correction(self) -> Matrix:
        return np.array([[1, 0, self.shift_px], [0, 1, 0], [0, 0, 1.0]])

    def update(self, base: Array, moved: Array, *, sensor_base: bool = False, sensor_moved: bool = True) -> Verdict:
        assert not sensor_base
        assert not sensor_moved
        if self._fails:
            raise AlignmentError("nothing of the kind")
        self.seen.append((base, moved))
        self.threads.add(threading.current_thread().name)
        if self.shift_px < self.bound_px:
            self.shift_px += 2.0
            return "moved"
        if len(self.seen) % 2:
            return "refused"
        self.shift_px = 0.0
        return "reset"


def run(tmp_path: Path, refinement: Pushing | None, *, rigged: bool = True, **settings: Any) -> dict[str, Any]:
    size = RigSource((64, 48))
    write_rig(tmp_path / "rig.yaml", Rig(size, size, (RigAlignment(None, to_rows(np.eye(3))),)))
    settings = {"outputs": ("null://",), "hash": True, "rig": str(tmp_path / "rig.yaml") if rigged else None, **settings}
    fuser = Fuser(MeanBackend(), find_task("ir_vis"))
    session = StreamSession(StreamSettings(**settings), fuser=fuser, refinement=refinement)
    session.run()
    report = session.report()
    assert report is not None
    return report


def test_files_are_refined_in_step_and_give_the_same_frames_again(tmp_path: Path) -> None:
    files = {side: camera(side, live=0, frames=44, rate=2, noise=0) for side in ("ir", "vis")}
    first, second = Pushing(), Pushing()
    reports = [run(tmp_path, refinement, **files) for refinement in (first, second)]
    assert reports[0]["output_sha256"] == reports[1]["output_sha256"]
    assert reports[0]["output_sha256"] != run(tmp_path, None, **files)["output_sha256"]
    # 22 s of scene: at 0, 5, 10, 15 and 20 s.
    assert len(first.seen) == 5
    assert reports[0]["refinement"] == {"bound_px": 4.0, "moved": 3, "refused": 2, "resets": 1, "correction_px": 2.0}
    assert ["reset" in event["what"] for event in reports[0]["events"] if event["where"] == "refinement"] == [True]


def test_each_measurement_starts_from_the_last_correction(tmp_path: Path) -> None:
    files = {side: camera(side, live=0, frames=14, rate=2, noise=0.2, walker=0) for side in ("ir", "vis")}
    pushing = Pushing()
    run(tmp_path, pushing, **files)
    (_, before), (_, after) = pushing.seen
    np.testing.assert_allclose(after[:, :-2], before[:, 2:], atol=0.03)
    assert np.isnan(after[:, -2:]).all()


def test_cameras_are_refined_in_parallel_with_the_engine(tmp_path: Path) -> None:
    pushing = Pushing()
    report = run(tmp_path, pushing, ir=camera("ir"), vis=camera("vis"), frames=40)
    assert pushing.threads == {"refinement"}
    assert report["refinement"]["moved"] == 1
    assert report["refinement"]["correction_px"] == pytest.approx(2.0)
    assert not [thread for thread in threading.enumerate() if thread.name == "refinement"]


@pytest.mark.parametrize("live", [0, 1])
def test_a_refinement_that_fails_ends_the_run_with_its_error(tmp_path: Path, live: int) -> None:
    with pytest.raises(AlignmentError, match="nothing of the kind"):
        run(tmp_path, Pushing(fails=True), ir=camera("ir", live=live, frames=90), vis=camera("vis", live=live, frames=90))


def test_without_a_rig_there_is_nothing_to_refine(tmp_path: Path) -> None:
    with raises(UsageError, remedy=("--rig", "--refine")):
        run(tmp_path, Pushing(), rigged=False, ir=camera("ir", live=0, frames=3), vis=camera("vis", live=0, frames=3))


@pytest.mark.slow
def test_a_bumped_mount_is_followed_from_the_command_line(run_cli: RunCli) -> None:
    pair = next(read_pair(paths) for paths in sample_paths("ir_vis") if paths.name == "street")
    height, width = pair.b.shape[:2]
    bumped = cv2.warpAffine(pair.a, np.array([[1, 0, 5.0], [0, 1, -3.0]]), (width, height), flags=cv2.INTER_CUBIC)
    for side, image in (("ir", bumped), ("vis", pair.b)):
        for number in range(4):
            noise = np.random.default_rng(number).integers(0, 3, image.shape)  # identical frames would be a frozen camera
            write_image(Path(side) / f"{number}.png", np.minimum(image + noise, 255).astype(np.uint8))
    rig = Rig(RigSource((width, height)), RigSource((width, height)), (RigAlignment(None, to_rows(np.eye(3))),))
    write_rig("rig.yaml", rig)
    files = ("--ir", "file://ir?rate=0.1", "--vis", "file://vis?rate=0.1", "--rig", "rig.yaml", "--threads", 1)
    code, out, err = run_cli("stream", *files, "-o", "out", "--refine", 10, "--json", "report.json", "--no-marks")
    assert (code, err) == (0, "")
    refinement = json.loads(Path("report.json").read_text())["refinement"]
    assert refinement["moved"] == 4
    # A fifth of the remaining error at each step: 1 - 0.8^4 of sqrt(34).
    assert refinement["correction_px"] == pytest.approx(0.59 * 34**0.5, abs=0.25)
    assert "4 measurements" in out
    assert not np.array_equal(read_image(Path("out/000000.png")), read_image(Path("out/000003.png")))
