"""One stream from its settings: opens sources, rig, engine and outputs, runs them, and makes the report."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from refusion_edge.errors import UsageError
from refusion_edge.fuser import Fuser, load
from refusion_edge.rig.model import Rig
from refusion_edge.stream.outputs.display import DisplaySink, has_display
from refusion_edge.stream.outputs.recording import Recorder, Recording, read_recording
from refusion_edge.stream.outputs.sinks import NullSink, SharedMemorySink, Sink
from refusion_edge.stream.outputs.video import open_file_sink
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.processing.output_range import OutputStretch
from refusion_edge.stream.processing.processor import Geometry, Processor
from refusion_edge.stream.run.pipeline import Pipeline, RunLimits
from refusion_edge.stream.run.refinement import Refinement, RigRefiner
from refusion_edge.stream.run.settings import StreamSettings, choose_pairing
from refusion_edge.stream.sources.pacing import PacedSource
from refusion_edge.stream.sources.registry import open_pair
from refusion_edge.stream.sources.source import Source
from refusion_edge.stream.statistics import Statistics
from refusion_edge.stream.uri import Uri, frame_pattern, parse_output, parse_source

_DEFAULT_VIEW = "view://127.0.0.1:8080"
_DEFAULT_TASK = "ir_vis"


class StreamSession:
    """A stream with the settings of a user.

    Args:
        settings: Options of the stream.
        fuser: Runs the network in place of the one that the settings name; closed at the end.
        refinement: Follows slow changes of the rig, such as ``calibration.rig.tracking.OnlineRefinement``; None keeps the rig
            fixed.

    Attributes:
        stop: Set it from any thread to end the stream.
        statistics: Counters of the stream, which can be read while it runs.
    """

    def __init__(self, settings: StreamSettings, *, fuser: Fuser | None = None, refinement: Refinement | None = None) -> None:
        self.settings = settings
        self.statistics = Statistics()
        self.stop = threading.Event()
        self._fuser = fuser
        self._refinement = refinement
        self._output_sha256: str | None = None
        self._started = False

    def run(self, announce: Callable[[str], object] = lambda _text: None) -> None:
        """Run until the sources end, a limit is reached or ``stop`` is set.

        Args:
            announce: Called at the start with messages for the user, such as the address of the browser view.

        Raises:
            RefusionError: An input, an output or an option cannot be used; see ``errors`` for the exit codes.
            KeyboardInterrupt: A signal arrived; everything is closed by then.
        """
        settings = self.settings
        rig = _read_rig(settings)
        sources = self._sources(rig)
        live = not isinstance(sources, Recording) and any(source.live for source in sources)
        recorded = sources.settings if isinstance(sources, Recording) else None
        pairing = choose_pairing(settings, rig, recorded, live=live)
        failover = pairing.failover(rig)
        refiner = self._refiner(rig)
        gain, stretch, geometry = self._processing(rig)
        uris = [parse_output(text) for text in settings.outputs or (self._default_output(),)]
        _refuse_overwriting(sources, uris, settings.record)
        recorder = None
        if settings.record is not None:
            shown = {"pairing": asdict(pairing), "sources": settings.shown()}
            recorder = Recorder(Path(settings.record), shown)
        rate_hz = None if isinstance(sources, Recording) else _rate(sources)
        sinks = [self._sink(uri, gain, announce, rate_hz=rate_hz) for uri in uris]
        with self._fuser or self._load() as fuser:
            processor = Processor(
                fuser.backend,
                gain=gain,
                stretch=stretch,
                geometry=geometry,
                color=not settings.gray,
                marks=settings.marks,
                took=self.statistics.took,
                remark=self.statistics.remark,
            )
            self._started = True
            pipeline = Pipeline(
                sources,
                failover,
                processor,
                sinks,
                self.statistics,
                limits=RunLimits(settings.give_up_s, settings.duration_s, frames=settings.frames),
                recorder=recorder,
                refiner=refiner,
                hashed=settings.hash or settings.replay is not None or settings.record is not None,
                stop=self.stop,
            )
            try:
                pipeline.run()
            finally:
                self._output_sha256 = pipeline.sha256

    def report(self) -> dict[str, Any] | None:
        """The report of the run, schema ``refusion-edge/stream/1``; None if it never started."""
        if not self._started:
            return None
        return {
            "schema": "refusion-edge/stream/1",
            "settings": self.settings.shown(),
            "output_sha256": self._output_sha256,
            **self.statistics.snapshot(),
        }

    def _load(self) -> Fuser:
        settings = self.settings
        source = settings.bundle or settings.weights or settings.task or _DEFAULT_TASK
        task = settings.task if source != settings.task else None
        return load(
            source, task=task, backend=settings.backend, threads=settings.threads, streaming=True, network=settings.network
        )

    def _sources(self, rig: Rig | None) -> tuple[Source, Source] | Recording:
        settings = self.settings
        if settings.replay is not None:
            if settings.ir or settings.vis or settings.record:
                raise UsageError("--replay cannot be combined with --ir, --vis or --record", "leave them out")
            return read_recording(Path(settings.replay))
        ir, vis = settings.ir or (rig.ir.uri if rig else None), settings.vis or (rig.vis.uri if rig else None)
        if ir is None or vis is None:
            raise UsageError("a stream needs two sources", "give --ir and --vis, a --rig that names them, or --replay")
        opened = open_pair(parse_source(ir), parse_source(vis), best_effort=settings.best_effort)
        if opened[0].live != opened[1].live:
            return (
                opened[0] if opened[0].live else PacedSource(opened[0]),
                opened[1] if opened[1].live else PacedSource(opened[1]),
            )
        return opened

    def _processing(self, rig: Rig | None) -> tuple[ThermalGain, OutputStretch, Geometry]:
        settings = self.settings
        gain = ThermalGain(
            settings.gain or (rig.gain if rig else "percentile"),
            polarity=settings.polarity or (rig.polarity if rig else "white"),
            time_constant_s=settings.smooth_s,
        )
        stretch = OutputStretch(settings.output_range, time_constant_s=settings.smooth_s)
        if rig is None:
            if settings.distance is not None:
                raise UsageError("--distance needs a rig", "add --rig")
            return gain, stretch, Geometry(resize=settings.resize)
        from refusion_edge.rig.warp import make_warp

        return gain, stretch, Geometry(make_warp(rig, settings.distance))

    def _refiner(self, rig: Rig | None) -> RigRefiner | None:
        if self._refinement is None:
            return None
        if rig is None:
            raise UsageError("there is no rig to refine", "add --rig, or leave --refine out")
        return RigRefiner(self._refinement, rig, self.settings.distance, self.statistics)

    def _default_output(self) -> str:
        return "display://0" if has_display() and not self.settings.headless else _DEFAULT_VIEW

    def _sink(self, uri: Uri, gain: ThermalGain, announce: Callable[[str], object], *, rate_hz: float | None) -> Sink:
        if uri.scheme == "null":
            return NullSink(uri)
        if uri.scheme == "display":
            if self.settings.headless:
                raise UsageError(f"--headless rules out the window {uri}", "leave one of them out")
            return DisplaySink(uri, self.stop)
        if uri.scheme == "shm":
            return SharedMemorySink(uri)
        if uri.scheme == "rtsp":
            from refusion_edge.stream.outputs.rtsp import RtspSink

            return RtspSink(uri, rate_hz=rate_hz, announce=announce)
        if uri.scheme == "view":
            from refusion_edge.stream.outputs.view import ViewSink

            return ViewSink(
                uri,
                self.statistics,
                gain,
                token=self.settings.token,
                allow_origins=self.settings.allow_origins,
                announce=announce,
            )
        return open_file_sink(uri, rate_hz=rate_hz, announce=announce)


def _read_rig(settings: StreamSettings) -> Rig | None:
    if settings.rig is None:
        return None
    from refusion_edge.rig.file import read_rig

    return read_rig(settings.rig)


def _refuse_overwriting(sources: tuple[Source, Source] | Recording, outputs: list[Uri], record: str | None) -> None:
    """Require that outputs and the recording differ from the sources and from each other."""
    read = (
        [sources.folder, sources.folder / "ir", sources.folder / "vis"]
        if isinstance(sources, Recording)
        else [_folder(source.uri.target) for source in sources if source.uri.scheme == "file"]
    )
    # Not Path.resolve, which raises for a link to itself.
    taken = set(map(os.path.realpath, read))
    written = [(str(uri), _folder(uri.target)) for uri in outputs if uri.scheme == "file"]
    for name, path in written + ([] if record is None else [(record, Path(record))]):
        if os.path.realpath(path) in taken:
            raise UsageError(f"{name} is already a source or another output", "choose another name")
        taken.add(os.path.realpath(path))


def _folder(target: str) -> Path:
    """The path to protect: the folder of a pattern, else the file or folder itself."""
    return Path(target).parent if frame_pattern(target) is not None else Path(target)


def _rate(sources: tuple[Source, Source]) -> float | None:
    """Nominal rate of the faster camera."""
    rates = [source.rate_hz for source in sources if source.rate_hz is not None]
    return max(rates) if rates else None
