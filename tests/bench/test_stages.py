"""One picture, stage by stage, and what a back end does not have."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from refusion_edge.bench.stages import DeviceTimed, Pipeline, parse_stages, times_of
from refusion_edge.errors import UsageError
from refusion_edge.fuser import Fuser
from refusion_edge.images.pairs import ImagePair
from refusion_edge.tasks import find_task
from tests.bench.conftest import MadeUpBackend, MadeUpClock
from tests.conftest import one_sentence


class TimedBackend(MadeUpBackend):
    """Tells the times of its stages on the device."""

    def time_stages(self) -> None:
        self.is_timed = True

    def device_stages_ms(self) -> Mapping[str, float]:
        return {"h2d": 1.0, "infer": 2.5}


def pipeline_of(
    clock: MadeUpClock, backend: MadeUpBackend, *, captured: bool = False, source: Callable[[], None] = lambda: None
) -> Pipeline:
    rng = np.random.default_rng(4)
    pair = ImagePair("x", rng.integers(0, 256, (16, 24), np.uint8), rng.integers(0, 256, (16, 24, 3), np.uint8))

    def give() -> ImagePair:
        source()
        return pair

    backend.__enter__()
    return Pipeline(Fuser(backend, find_task("ir_vis")), give, captured=captured, clock=clock)


def test_a_cpu_back_end_has_no_copies_and_memory_no_capture(clock: MadeUpClock) -> None:
    lap = pipeline_of(clock, MadeUpBackend(clock, itertools.repeat(7.0))).run()
    assert lap.stages_ms == {"preprocess": 0, "infer": 7, "postprocess": 0}
    assert (lap.end_to_end_ms, lap.cpu_ms) == (7, 14)


def test_reading_files_is_a_stage(clock: MadeUpClock) -> None:
    backend = MadeUpBackend(clock, itertools.repeat(7.0))
    lap = pipeline_of(clock, backend, captured=True, source=lambda: clock.pass_ms(3)).run()
    assert lap.stages_ms["capture"] == 3
    assert lap.end_to_end_ms == 10


def test_times_of_the_device_count_where_it_tells_them(clock: MadeUpClock) -> None:
    backend = TimedBackend(clock, itertools.repeat(7.0))
    assert isinstance(backend, DeviceTimed)
    lap = pipeline_of(clock, backend).run()
    assert backend.is_timed
    assert lap.stages_ms == {"preprocess": 0, "h2d": 1.0, "infer": 2.5, "postprocess": 0}
    assert lap.end_to_end_ms == 7


def test_times_are_gathered_by_stage(clock: MadeUpClock) -> None:
    pipeline = pipeline_of(clock, MadeUpBackend(clock, iter([1.0, 2.0, 4.0])))
    times = times_of([pipeline.run() for _ in range(3)])
    assert list(times) == ["preprocess", "infer", "postprocess", "end_to_end", "cpu"]
    assert times["infer"].tolist() == [1, 2, 4]
    assert times["cpu"].tolist() == [2, 4, 8]


def test_stages_are_named_or_refused() -> None:
    assert parse_stages("infer, cpu,infer") == ("infer", "cpu")
    with pytest.raises(UsageError, match="did you mean 'preprocess'") as caught:
        parse_stages("infer,preproces")
    assert one_sentence(str(caught.value))


def test_a_fuser_gives_the_same_picture_in_steps_and_at_once(clock: MadeUpClock) -> None:
    backend = MadeUpBackend(clock, itertools.repeat(1.0))
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 256, (17, 23), np.uint8), rng.integers(0, 256, (17, 23, 3), np.uint8)
    with Fuser(backend, find_task("ir_vis")) as fuser:
        planes = fuser.to_planes(a, b)
        stepwise = fuser.to_picture(backend.fuse(planes.a, planes.b), planes)
        assert np.array_equal(stepwise, fuser.fuse(a, b))
        assert fuser.to_picture(backend.fuse(planes.a, planes.b), planes, colour=False).ndim == 2
