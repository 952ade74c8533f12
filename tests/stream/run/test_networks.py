"""``--network auto``: what is decided from what was measured, and a change of the network in the middle of a run."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refusion_edge.arrays import Float32Array
from refusion_edge.backends.registry import status
from refusion_edge.errors import BackendError, InputError, UsageError
from refusion_edge.fuser import Fuser, load
from refusion_edge.network.checkpoint import Checkpoint, write_safetensors
from refusion_edge.network.fast import FastLayout
from refusion_edge.stream.frames import SECOND, SIDES, Frame, FusedFrame, Pair
from refusion_edge.stream.outputs.recording import read_recording
from refusion_edge.stream.run import networks, session
from refusion_edge.stream.run.networks import LARGEST_SHARE, Decision, NetworkChooser, PlannedNetworks, Trial, decide, measure
from refusion_edge.stream.run.session import StreamSession
from refusion_edge.stream.run.settings import StreamSettings
from refusion_edge.stream.statistics import Statistics
from refusion_edge.tasks import find_task
from tests.raising import raises
from tests.stream.conftest import MeanBackend, camera, explained

SIZE_WH = (64, 48)


def trials(refusion_ms: float | None, fast_ms: float | None) -> list[Trial]:
    return [Trial(name, "native", ms, 3) for name, ms in (("refusion", refusion_ms), ("fast", fast_ms))]


@pytest.mark.parametrize(
    ("refusion_ms", "fast_ms", "rate_hz", "network"),
    [
        (0.79 * 1000 / 30 - 4, 5, 30, "refusion"),
        (0.81 * 1000 / 30 - 4, 5, 30, "fast"),
        (300, 60, 30, "fast"),
        (300, 60, 2, "refusion"),
        (1, 1, None, "fast"),
        (None, 5, 30, "fast"),
        (300, None, 30, "refusion"),
        (None, None, 30, "fast"),  # what runs already
    ],
)
def test_the_better_network_is_taken_if_it_holds_the_rate_with_a_margin(
    refusion_ms: float | None, fast_ms: float | None, rate_hz: float | None, network: str
) -> None:
    assert LARGEST_SHARE == 0.8
    decision = decide(trials(refusion_ms, fast_ms), rate_hz, 4.0, SIZE_WH)
    assert decision.network == network
    assert network in decision.reason
    assert "\n" not in decision.reason
    assert decision.to_json()["trials"][0]["infer_ms"] == refusion_ms


class Counting(MeanBackend):
    """Counts the images by size."""

    def __init__(self, delay_s: float = 0.0) -> None:
        super().__init__(delay_s)
        self.sizes: list[tuple[int, ...]] = []
        self.closed = False

    def __exit__(self, *exc: object) -> None:
        self.closed = True

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        self.sizes.append(a.shape[2:])
        return super().fuse(a, b)


def test_a_network_that_is_far_too_slow_is_measured_on_a_part(rng: np.random.Generator) -> None:
    backend = Counting(0.002)
    planes = [rng.random((1, 1, 48, 64), np.float32) for _ in "ab"]
    trial = measure(Fuser(backend, find_task("ir_vis")), "refusion", *planes, period_s=0.001)
    assert backend.sizes == [(12, 16)] * 2
    assert trial.runs == 0
    assert trial.infer_ms is not None
    assert trial.infer_ms >= 16 * 2


def test_others_are_measured_on_whole_images(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_TRIAL_S", 0.0)
    backend = Counting()
    planes = [rng.random((1, 1, 9, 11), np.float32) for _ in "ab"]
    trial = measure(Fuser(backend, find_task("ir_vis")), "fast", *planes, period_s=None)
    assert backend.sizes == [(8, 8)] * 2 + [(9, 11)] * 2  # one of them to prepare memory
    assert (trial.runs, trial.backend) == (1, "mean")


def test_the_end_of_a_stream_ends_a_measurement_between_two_runs(rng: np.random.Generator) -> None:
    planes = [rng.random((1, 1, 9, 11), np.float32) for _ in "ab"]
    for answers, sizes in (([True], [(8, 8)] * 2), ([False, True], [(8, 8)] * 2 + [(9, 11)] * 2)):
        backend, asked = Counting(), iter(answers)
        measure(Fuser(backend, find_task("ir_vis")), "fast", *planes, None, lambda asked=asked: next(asked))
        assert backend.sizes == sizes


def test_the_end_of_a_stream_does_not_wait_for_the_rest_of_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsal, running = Rehearsal(monkeypatch), threading.Event()
    monkeypatch.setattr(networks, "_TRIAL_S", 3600.0)
    fuse = Counting.fuse
    monkeypatch.setattr(Counting, "fuse", lambda backend, a, b: running.set() or fuse(backend, a, b))
    with rehearsal.chooser as chooser:
        chooser.next_backend(*fused(0))
        thread = threading.Thread(target=chooser.run)
        thread.start()
        assert running.wait(20)
        chooser.close()
        thread.join(20)
        assert not thread.is_alive()
    assert chooser.decisions == []
    assert rehearsal.open_engines() == []


def fused(number: int, *, width: int = 64) -> tuple[FusedFrame, Pair]:
    """A fused frame of 64x48, from cameras of another width."""
    time_ns = number * SECOND // 30
    image = np.zeros((48, width), np.uint8)
    pair = Pair(number, Frame("ir", image, 0, time_ns, 0, time_ns), Frame("vis", image, 0, time_ns, 0, time_ns))
    plane, vis = np.zeros((48, 64), np.float32), np.zeros((48, 64, 3), np.uint8)
    return FusedFrame(vis, plane, vis, number, time_ns, 0, "fused"), pair


def at_30_hz() -> Statistics:
    """Figures of two cameras that have sent two frames each."""
    statistics = Statistics()
    for side in SIDES:
        for number in range(2):
            statistics.delivered(side, SIZE_WH, "uint8", time_ns=number * SECOND // 30)
    return statistics


class Rehearsal:
    """A chooser with engines that cost nothing, which decides as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *decided: str) -> None:
        self.opened: list[tuple[str, Counting]] = []
        coming = list(decided)
        monkeypatch.setattr(networks, "_TRIAL_S", 0.0)
        monkeypatch.setattr(networks, "decide", lambda *_: Decision(coming.pop(0), "as told"))
        self.said: list[str] = []
        self.statistics = at_30_hz()
        self.chooser = NetworkChooser(self.open, self.statistics, announce=self.said.append)

    def open(self, name: str) -> Fuser:
        backend = Counting()
        self.opened.append((name, backend))
        return Fuser(backend, find_task("ir_vis"), network=name)

    def measure(self) -> None:
        """Let the thread of the chooser do what is waiting for it."""
        waiting = self.chooser._to_measure.get(0)
        assert waiting is not None
        self.chooser._choose(waiting)

    def open_engines(self) -> list[str]:
        return [name for name, backend in self.opened if not backend.closed]


def test_a_decision_is_adopted_between_two_frames_and_the_rest_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsal = Rehearsal(monkeypatch, "refusion", "refusion", "fast")
    with rehearsal.chooser as chooser:
        assert chooser.next_backend(*fused(0)) is None
        rehearsal.measure()
        assert chooser.next_backend(*fused(3)) is rehearsal.opened[0][1]
        assert (chooser.used, rehearsal.open_engines()) == ([(0, "fast"), (4, "refusion")], ["refusion"])
        # Nothing is measured again until a camera changes its size; the same decision changes nothing.
        assert chooser.next_backend(*fused(4)) is None
        assert not len(chooser._to_measure)
        assert chooser.next_backend(*fused(5, width=32)) is None
        rehearsal.measure()
        assert chooser.next_backend(*fused(6, width=32)) is None
        assert rehearsal.open_engines() == ["refusion"]
        assert chooser.next_backend(*fused(7)) is None
        rehearsal.measure()
        assert chooser.next_backend(*fused(8)) is rehearsal.opened[-1][1]
        assert chooser.used[-1] == (9, "fast")
        assert rehearsal.open_engines() == ["fast"]
    assert rehearsal.open_engines() == []
    assert len(rehearsal.said) == len(chooser.decisions) == 3
    assert [event["where"] for event in rehearsal.statistics.snapshot()["events"]] == ["network"] * 3


def test_a_decision_that_comes_too_late_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsal = Rehearsal(monkeypatch, "refusion")
    with rehearsal.chooser as chooser:
        chooser.next_backend(*fused(0))
        waiting = chooser._to_measure.get(0)
    assert waiting is not None
    chooser._choose(waiting)
    assert rehearsal.open_engines() == []


def test_nothing_is_measured_before_the_rate_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsal = Rehearsal(monkeypatch, "refusion")
    with rehearsal.chooser as chooser:
        rehearsal.statistics.restarted()
        assert chooser.next_backend(*fused(0)) is None
        assert not len(chooser._to_measure)
        for number in range(2):
            rehearsal.statistics.delivered("ir", SIZE_WH, "uint8", time_ns=number * SECOND // 30)
        assert chooser.next_backend(*fused(1)) is None
        assert len(chooser._to_measure)


def test_cameras_whose_times_stand_still_do_not_put_it_off_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsal = Rehearsal(monkeypatch, "refusion")
    with rehearsal.chooser as chooser:
        rehearsal.statistics.restarted()
        for number in range(networks._MOST_UNRATED):
            assert not len(chooser._to_measure)
            chooser.next_backend(*fused(number))
        assert len(chooser._to_measure)


def test_a_seek_during_the_measurement_leaves_the_rate_known(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsal, rates = Rehearsal(monkeypatch), list[float | None]()
    monkeypatch.setattr(networks, "decide", lambda _trials, rate_hz, *_: rates.append(rate_hz) or Decision("fast", "as told"))
    opens = rehearsal.open
    monkeypatch.setattr(rehearsal.chooser, "_open", lambda name: rehearsal.statistics.restarted() or opens(name))
    with rehearsal.chooser as chooser:
        chooser.next_backend(*fused(0))
        rehearsal.measure()
    assert rates == [pytest.approx(30)]


def test_the_end_does_not_wait_for_the_second_network(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsal = Rehearsal(monkeypatch)
    opens = rehearsal.open
    monkeypatch.setattr(rehearsal.chooser, "_open", lambda name: rehearsal.chooser.__exit__() or opens(name))
    rehearsal.chooser.next_backend(*fused(0))
    rehearsal.measure()
    assert [name for name, _ in rehearsal.opened] == ["refusion"]
    assert rehearsal.open_engines() == []


def test_a_network_that_cannot_be_opened_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_TRIAL_S", 0.0)

    def open_network(name: str) -> Fuser:
        if name == "refusion":
            raise BackendError("there is not enough memory")
        return Fuser(MeanBackend(), find_task("ir_vis"))

    with NetworkChooser(open_network, at_30_hz()) as chooser:
        chooser.next_backend(*fused(0))
        thread = threading.Thread(target=chooser.run)
        thread.start()
        deadline_s = time.monotonic() + 20
        while not chooser.decisions and time.monotonic() < deadline_s:
            time.sleep(0.01)
        chooser.close()
        thread.join(20)
        assert not thread.is_alive()
    (decision,) = chooser.decisions
    assert decision.network == "fast"
    assert decision.trials[0].problem == "there is not enough memory"


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Let sessions open engines that fuse by the mean, and by the maximum for ``fast``; returns the networks asked for."""
    asked: list[str | None] = []

    class Maximum(MeanBackend):
        def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
            return np.maximum(a, b)

    def open_engine(*_: object, network: str | None, **__: object) -> Fuser:
        asked.append(network)
        backend = Maximum() if network == "fast" else MeanBackend()
        return Fuser(backend, find_task("ir_vis"), network=network or "refusion")

    monkeypatch.setattr(session, "load", open_engine)
    monkeypatch.setattr(networks, "_TRIAL_S", 0.0)
    return asked


def run(**settings: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    stream = StreamSession(StreamSettings(outputs=("null://",), network="auto", **settings))
    stream.run(said.append)
    report = stream.report()
    assert report is not None
    return report, said


@pytest.mark.slow
def test_a_change_of_size_leads_to_another_decision_and_loses_nothing(
    engines: list[str | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    decided = iter(["refusion", "fast", "refusion", "fast", "refusion", "fast"])
    monkeypatch.setattr(networks, "decide", lambda *_: Decision(next(decided), "as told"))
    report, said = run(
        ir=camera("ir", rate=6, resize_every=8),
        vis=camera("vis", rate=6),
        resize=True,
        frames=19,
        record=str(tmp_path / "r"),
    )
    assert explained(report)
    assert set(report["pairs"]["drops"]) <= {"stopped"}
    used = [row["name"] for row in report["network"]["used"]]
    assert used == ["fast", "refusion", "fast", "refusion"]
    assert len(said) == 3
    events = [event["what"] for event in report["events"] if event["where"] in ("ir", "network")]
    assert [("as told" in text, "size changed" in text) for text in events][:3] == [(True, False), (False, True), (True, False)]
    # A replay fuses each pair with the network of the recording.
    recording = read_recording(tmp_path / "r")
    assert [list(each) for each in recording.networks] == [
        [row["first_pair"], row["name"]] for row in report["network"]["used"]
    ]
    again, _ = run(replay=str(tmp_path / "r"), resize=True)
    assert again["network"]["used"] == report["network"]["used"]
    assert again["output_sha256"] == report["output_sha256"]


def test_files_wait_for_the_better_network(engines: list[str | None]) -> None:
    report, said = run(ir=camera("ir", live=0, frames=3), vis=camera("vis", live=0, frames=3))
    assert engines == ["refusion"]
    assert report["network"]["name"] == "refusion"
    assert report["network"]["decisions"][0]["reason"] in said[0]


def test_a_task_without_weights_of_fast_has_no_choice(engines: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "shipped_tasks", lambda _network: ("ir_vis",))
    report, said = run(ir=camera("ir"), vis=camera("vis"), task="medical", frames=3)
    assert engines == ["refusion"]
    assert "medical" in said[0]
    assert report["network"]["used"] == [{"first_pair": 0, "name": "refusion"}]


def test_a_recording_that_names_no_network_is_fused_by_the_default(engines: list[str | None], tmp_path: Path) -> None:
    files = {"ir": camera("ir", live=0, frames=3), "vis": camera("vis", live=0, frames=3)}
    run(**files, record=str(tmp_path / "r"))
    path = tmp_path / "r" / "recording.json"
    path.write_text(path.read_text().replace('"networks"', '"unknown"'))
    report, _ = run(replay=str(tmp_path / "r"))
    assert report["network"]["name"] == "refusion"


@pytest.mark.parametrize("networks_in_file", ['[[0, "fats"]]', '[[3, "fast"]]', '[[0, "fast"], [0, "refusion"]]', "[0]", "7"])
def test_a_recording_with_senseless_networks_is_refused(
    engines: list[str | None], tmp_path: Path, networks_in_file: str
) -> None:
    run(ir=camera("ir", live=0, frames=3), vis=camera("vis", live=0, frames=3), record=str(tmp_path / "r"))
    path = tmp_path / "r" / "recording.json"
    path.write_text(path.read_text().replace('"networks"', f'"networks": {networks_in_file}, "unknown"'))
    with raises(InputError, "networks" if "fats" not in networks_in_file else "network"):
        read_recording(tmp_path / "r")


def test_a_file_decides_for_itself_and_the_stream_says_so() -> None:
    state = {name: np.zeros(shape, np.float32) for name, shape in FastLayout(8, 3).shapes.items()}
    write_safetensors("mine.safetensors", Checkpoint("ir_vis", state))
    files = {"ir": camera("ir", live=0, frames=3), "vis": camera("vis", live=0, frames=3)}
    report, (said,) = run(**files, weights="mine.safetensors", backend="onnxruntime", threads=1)
    assert report["network"]["name"] == "fast"
    assert "mine.safetensors" in said
    assert "fast" in said
    # ONNX Runtime is not told statistics.
    assert report["network"]["statistics"] == "of each frame"


def test_only_streams_choose() -> None:
    with raises(UsageError, expected=("refusion", "fast"), got="auto"):
        load("ir_vis", network="auto")


def test_planned_networks_change_at_their_pairs() -> None:
    opened: list[Counting] = []

    def open_network(name: str) -> Fuser:
        opened.append(Counting())
        return Fuser(opened[-1], find_task("ir_vis"), network=name)

    with PlannedNetworks([(0, "fast"), (5, "refusion"), (9, "fast")], open_network) as plan:
        # Pairs that were not shown have no frame.
        found = {number: plan.next_backend(*fused(number)) for number in (0, 2, 6, 7, 8, 9)}
        assert [number for number, backend in found.items() if backend is not None] == [6, 8]
        assert (opened[0].closed, opened[1].closed) == (True, False)
    assert opened[1].closed


@pytest.mark.skipif(not status("native").usable, reason="needs the native module")
def test_smoothed_statistics_give_the_same_bits_for_any_number_of_threads(rng: np.random.Generator) -> None:
    state = {name: rng.normal(0, 0.15, shape).astype(np.float32) for name, shape in FastLayout(8, 3).shapes.items()}
    write_safetensors("mine.safetensors", Checkpoint("ir_vis", state))
    files = {side: camera(side, live=0, frames=12, pan=60) for side in ("ir", "vis")}
    hashes = set()
    for threads in (1, 2, 3):
        report, _ = run(**files, weights="mine.safetensors", backend="native", threads=threads, hash=True)
        assert report["network"]["statistics"] == "smoothed"
        hashes.add(report["output_sha256"])
    assert len(hashes) == 1
    alone, _ = run(**files, weights="mine.safetensors", backend="native", threads=1, hash=True, smooth_s=0.0, gain="linear")
    assert alone["output_sha256"] not in hashes
