"""A clock that only moves when told to, and engines that take as long as told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from typing_extensions import Self

from refusion_edge.arrays import Float32Array
from refusion_edge.bench.subjects import Identity, Quality, Subject
from refusion_edge.bench.timing import NS_PER_MS, Plan
from refusion_edge.fuser import Fuser
from refusion_edge.images.pairs import ImagePair
from refusion_edge.tasks import find_task

Write = Callable[[dict[str, object]], Path]

QUICK = Plan(warmup_ms=0, warmup_iterations=1, iterations=9, seconds=0, tolerance=0.05, most_windows=6)


class MadeUpClock:
    """Time passes only in ``pass_ms``. Implements ``Clock``."""

    name = "made up"

    def __init__(self) -> None:
        self._now_ns = self._witness_ns = 10**12
        self._cpu_ns = 0

    def pass_ms(self, wall_ms: float, cpu_ms: float = 0.0) -> None:
        self._now_ns += round(wall_ms * NS_PER_MS)
        self._witness_ns += round(wall_ms * NS_PER_MS)
        self._cpu_ns += round(cpu_ms * NS_PER_MS)

    def jump_ms(self, by_ms: float, *, seen: bool = False) -> None:
        """Let one of the two clocks jump: the witness, or the one that is measured with."""
        if seen:
            self._now_ns += round(by_ms * NS_PER_MS)
        else:
            self._witness_ns += round(by_ms * NS_PER_MS)

    def now_ns(self) -> int:
        return self._now_ns

    def witness_ns(self) -> int:
        return self._witness_ns

    def cpu_ns(self) -> int:
        return self._cpu_ns

    def sleep_until(self, moment_ns: int) -> None:
        assert moment_ns >= self._now_ns
        self.pass_ms((moment_ns - self._now_ns) / NS_PER_MS)


class MadeUpBackend:
    """Takes the mean of the sources, and as long as the next of its times says. Implements ``Backend``."""

    name = "onnxruntime"

    def __init__(self, clock: MadeUpClock, times_ms: Iterator[float]) -> None:
        self._clock, self._times_ms = clock, times_ms
        self.calls = 0
        self.graph_problem = ""
        self.is_open = False

    def __enter__(self) -> Self:
        self.is_open = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.is_open = False

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        assert self.is_open
        self.calls += 1
        time_ms = next(self._times_ms)
        self._clock.pass_ms(time_ms, cpu_ms=2 * time_ms)
        fused: Float32Array = (a + b) / 2
        return fused


@pytest.fixture
def clock() -> MadeUpClock:
    """A clock that stands still."""
    return MadeUpClock()


@pytest.fixture
def make_subject(clock: MadeUpClock) -> Callable[..., Subject]:
    """Make a subject from the times of its calls: ``make_subject(itertools.repeat(5.0))``."""
    return subject_maker(clock)


def subject_maker(clock: MadeUpClock) -> Callable[..., Subject]:
    """What ``make_subject`` is, for fixtures that live longer."""

    def make(
        times_ms: Iterator[float],
        *,
        name: str = "ir_vis",
        task: str = "ir_vis",
        size_hw: tuple[int, int] = (16, 24),
        backend: MadeUpBackend | None = None,
        captured: bool = False,
    ) -> Subject:
        from refusion_edge.bench.subjects import Wanted, find_subjects
        from refusion_edge.network.cost import refusion_work

        engine = backend or MadeUpBackend(clock, times_ms)
        rng = np.random.default_rng(3)
        pair = ImagePair("x", *(rng.integers(0, 256, size_hw, np.uint8) for _ in range(2)))
        files = find_subjects("ir_vis", Wanted())[0].files
        identity = Identity(name, task, "fp32", size_hw, "onnxruntime", 0)
        return Subject(
            identity,
            "ir_vis",
            files,
            Quality(81.4, 0.9999),
            lambda: Fuser(engine, find_task(task)),
            lambda: pair,
            captured,
            refusion_work("fp32"),
        )

    return make


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write files below a root: ``write({"sys/x": 1})``."""

    def put(files: dict[str, object]) -> Path:
        for name, value in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
        return tmp_path / "root"

    return put
