"""From what a user asks for to a running stream: sources, rig, engine, outputs, and the report in the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from refusion_edge.errors import UsageError
from refusion_edge.fuser import Fuser, load
from refusion_edge.rig.model import GainMethod, Polarity, Rig
from refusion_edge.stream.frames import MS, SIDES
from refusion_edge.stream.outputs.display import DisplaySink, has_display
from refusion_edge.stream.outputs.recording import Recorder, Recording, read_recording
from refusion_edge.stream.outputs.sinks import NullSink, SharedMemorySink, Sink
from refusion_edge.stream.outputs.video import open_file_sink
from refusion_edge.stream.pairing.failover import Limits, Matcher
from refusion_edge.stream.pairing.pairer import Pairer, Policy
from refusion_edge.stream.picture.gain import ThermalGain
from refusion_edge.stream.picture.output_range import OutputStretch, VideoRange
from refusion_edge.stream.picture.processor import Geometry, Processor
from refusion_edge.stream.run.pipeline import RunLimits, StreamRun, describe
from refusion_edge.stream.run.refinement import Refinement, RigRefiner
from refusion_edge.stream.sources.pacing import PacedSource
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.sources.source import Source
from refusion_edge.stream.statistics import Statistics
from refusion_edge.stream.uri import Uri, frame_pattern, parse_output, parse_source
from refusion_edge.text import redact

_DEFAULT_VIEW = "view://127.0.0.1:8080"
_DEFAULT_TASK = "ir_vis"


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Options of the verb ``stream``, by the same names; None where the rig, a recording or a default decides.

    Attributes:
        ir: URI of the infrared source.
        vis: URI of the visible source.
        replay: Folder of a recording to replay instead.
        outputs: URIs of outputs.
        record: Folder to record raw frames to.
        bundle: Engine bundle.
        weights: Weights file.
        task: Fusion task.
        backend: Back end of the network.
        threads: Threads of the back end; 0 for its own choice.
        policy: Pairing policy.
        max_skew_ms: Largest difference of time in a pair.
        max_age_ms: How long the policy ``hold`` holds a frame.
        offset_ms: What is added to time stamps of ir.
        lost_after_ms: Silence after which a camera is lost.
        max_freeze_ms: Unchanged infrared content after which the visible camera goes on alone.
        give_up_s: How long both cameras may be lost.
        rig: Rig file.
        distance: Working distance of the rig in metres.
        resize: Whether infrared pictures are stretched to the visible size where there is no rig.
        gain: Gain control of 16-bit infrared.
        polarity: What the infrared camera shows hot things as.
        output_range: Output range of the fused video.
        smooth_s: Time constant of gain and range.
        grey: Whether the colour of the visible camera is left out.
        marks: Whether losses, freezes and held frames are written into the picture.
        headless: No window, even where there is a display.
        duration_s: End after this time.
        pictures: End after so many pictures.
        token: Token that viewers have to give.
        hash: Whether all pictures are hashed.
    """

    ir: str | None = None
    vis: str | None = None
    replay: str | None = None
    outputs: tuple[str, ...] = ()
    record: str | None = None
    bundle: str | None = None
    weights: str | None = None
    task: str | None = None
    backend: str = "auto"
    threads: int = 0
    policy: Policy | None = None
    max_skew_ms: float | None = None
    max_age_ms: float | None = None
    offset_ms: float | None = None
    lost_after_ms: float = 1000.0
    max_freeze_ms: float = 2000.0
    give_up_s: float = 30.0
    rig: str | None = None
    distance: float | None = None
    resize: bool = False
    gain: GainMethod | None = None
    polarity: Polarity | None = None
    output_range: VideoRange = "smooth"
    smooth_s: float = 1.0
    grey: bool = False
    marks: bool = True
    headless: bool = False
    duration_s: float | None = None
    pictures: int | None = None
    token: str | None = None
    hash: bool = False

    def shown(self) -> dict[str, Any]:
        """As plain values for the report, without credentials."""
        return {
            field.name: _without_credentials(getattr(self, field.name)) for field in fields(self) if field.name != "token"
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class PairingSettings:
    """How frames are paired, after rig, recording and defaults have had their say; kept in recordings.

    Attributes:
        policy: Pairing policy.
        max_skew_ms: Largest difference of time in a pair, or None for a measured one.
        max_age_ms: How long the policy ``hold`` holds a frame.
        offset_ms: What is added to time stamps of ir.
        lost_after_ms: Silence after which a camera is lost, or None where none can be.
        max_freeze_ms: Unchanged infrared content after which the visible camera goes on alone.
    """

    policy: Policy
    max_skew_ms: float | None
    max_age_ms: float
    offset_ms: float
    lost_after_ms: float | None
    max_freeze_ms: float

    def matcher(self, rig: Rig | None = None) -> Matcher:
        """Make what pairs by these settings.

        Args:
            rig: Rig that frames have to fit, or None.

        Raises:
            UsageError: The policy is unknown or a limit negative.
        """
        pairer = Pairer(
            self.policy,
            max_skew_ns=None if self.max_skew_ms is None else round(self.max_skew_ms * MS),
            max_age_ns=round(self.max_age_ms * MS),
            offset_ns=round(self.offset_ms * MS),
        )
        limits = None
        if self.lost_after_ms is not None:
            limits = Limits(round(self.lost_after_ms * MS), round(self.max_freeze_ms * MS))
        return Matcher(pairer, limits, None if rig is None else {side: rig.source(side).size_wh for side in SIDES})


class StreamSession:
    """One stream as a user asked for it.

    Args:
        settings: What was asked for.
        fuser: Runs the network instead of what the settings name; closed in the end.
        refinement: Follows slow changes of the rig, such as ``calibration.tracking.OnlineRefinement``; none for the rig as it
            is.

    Attributes:
        stop: Set it, from any thread, to end the stream.
        statistics: Counters, for anyone who watches.
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
            announce: Called with what a user should know at the start, such as the address of the browser view.

        Raises:
            RefusionError: Something cannot be used, or failed; see ``errors`` for the exit code.
            KeyboardInterrupt: A signal came; everything was closed before.
        """
        settings = self.settings
        rig = _read_rig(settings)
        sources = self._sources(rig)
        pairing = _pairing(settings, rig, sources)
        matcher = pairing.matcher(rig)
        refiner = self._refiner(rig)
        gain, stretch, geometry = self._picture(rig)
        uris = [parse_output(text) for text in settings.outputs or (self._default_output(),)]
        _refuse_overwriting(sources, uris, settings.record)
        recorder = None
        if settings.record is not None:
            shown = {"pairing": asdict(pairing), "sources": settings.shown()}
            recorder = Recorder(Path(settings.record), shown)
        live = not isinstance(sources, Recording) and any(source.live for source in sources)
        rate_hz = None if isinstance(sources, Recording) else _rate(sources)
        sinks = [self._sink(uri, gain, announce, live=live, rate_hz=rate_hz) for uri in uris]
        with self._fuser or self._load() as fuser:
            processor = Processor(
                fuser.backend,
                gain=gain,
                stretch=stretch,
                geometry=geometry,
                colour=not settings.grey,
                marks=settings.marks,
                took=self.statistics.took,
            )
            self._started = True
            self._output_sha256 = StreamRun(
                sources,
                matcher,
                processor,
                sinks,
                self.statistics,
                limits=RunLimits(settings.give_up_s, settings.duration_s, settings.pictures),
                recorder=recorder,
                refiner=refiner,
                hashed=settings.hash or settings.replay is not None or settings.record is not None,
                stop=self.stop,
            ).run()

    def report(self) -> dict[str, Any] | None:
        """The report of the run, schema ``refusion-edge/stream/1``; None if it never started."""
        return describe(self.settings.shown(), self.statistics, self._output_sha256) if self._started else None

    def _load(self) -> Fuser:
        settings = self.settings
        source = settings.bundle or settings.weights or settings.task or _DEFAULT_TASK
        task = settings.task if source != settings.task else None
        return load(source, task=task, backend=settings.backend, threads=settings.threads, streaming=True)

    def _sources(self, rig: Rig | None) -> tuple[Source, Source] | Recording:
        settings = self.settings
        if settings.replay is not None:
            if settings.ir or settings.vis or settings.record:
                raise UsageError("expected --replay alone, got --ir, --vis or --record with it; leave them out.")
            return read_recording(Path(settings.replay))
        ir, vis = settings.ir or (rig.ir.uri if rig else None), settings.vis or (rig.vis.uri if rig else None)
        if ir is None or vis is None:
            raise UsageError("expected two sources, got fewer; give --ir and --vis, a --rig that names them, or --replay.")
        opened = open_source(parse_source(ir), "ir"), open_source(parse_source(vis), "vis")
        if opened[0].live != opened[1].live:
            return (
                opened[0] if opened[0].live else PacedSource(opened[0]),
                opened[1] if opened[1].live else PacedSource(opened[1]),
            )
        if opened[0].absolute != opened[1].absolute:
            return (
                PacedSource(opened[0], from_zero_only=True) if opened[0].absolute else opened[0],
                PacedSource(opened[1], from_zero_only=True) if opened[1].absolute else opened[1],
            )
        return opened

    def _picture(self, rig: Rig | None) -> tuple[ThermalGain, OutputStretch, Geometry]:
        settings = self.settings
        gain = ThermalGain(
            settings.gain or (rig.gain if rig else "percentile"),
            polarity=settings.polarity or (rig.polarity if rig else "white"),
            time_constant_s=settings.smooth_s,
        )
        stretch = OutputStretch(settings.output_range, time_constant_s=settings.smooth_s)
        if rig is None:
            if settings.distance is not None:
                raise UsageError("expected a rig for --distance, got none; add --rig.")
            return gain, stretch, Geometry(resize=settings.resize)
        from refusion_edge.rig.warp import make_warp

        return gain, stretch, Geometry(make_warp(rig, settings.distance))

    def _refiner(self, rig: Rig | None) -> RigRefiner | None:
        if self._refinement is None:
            return None
        if rig is None:
            raise UsageError("expected a rig to refine, got none; add --rig, or leave --refine out.")
        return RigRefiner(self._refinement, rig, self.settings.distance, self.statistics)

    def _default_output(self) -> str:
        return "display://0" if has_display() and not self.settings.headless else _DEFAULT_VIEW

    def _sink(
        self, uri: Uri, gain: ThermalGain, announce: Callable[[str], object], *, live: bool, rate_hz: float | None
    ) -> Sink:
        if uri.scheme == "null":
            return NullSink(uri)
        if uri.scheme == "display":
            if self.settings.headless:
                raise UsageError(f"expected no window with --headless, got {uri}; leave one of them out.")
            return DisplaySink(uri, self.stop)
        if uri.scheme == "shm":
            return SharedMemorySink(uri)
        if uri.scheme == "rtsp":
            from refusion_edge.stream.outputs.rtsp import RtspSink

            return RtspSink(uri, rate_hz=rate_hz, announce=announce)
        if uri.scheme == "view":
            from refusion_edge.stream.outputs.view import ViewSink

            return ViewSink(uri, self.statistics, gain, token=self.settings.token, announce=announce)
        return open_file_sink(uri, rate_hz=rate_hz, live=live)


def _read_rig(settings: StreamSettings) -> Rig | None:
    if settings.rig is None:
        return None
    from refusion_edge.rig.file import read_rig

    return read_rig(settings.rig)


def _pairing(settings: StreamSettings, rig: Rig | None, sources: tuple[Source, Source] | Recording) -> PairingSettings:
    """What holds: an option, else the recording, else the rig, else a default."""
    recorded = sources.settings.get("pairing", {}) if isinstance(sources, Recording) else {}
    live = not isinstance(sources, Recording) and any(source.live for source in sources)
    chosen: dict[str, Any] = {
        "policy": "nearest",
        "max_skew_ms": None,
        "max_age_ms": 500.0,
        "offset_ms": (rig.time_offset_ms if rig else None) or 0.0,
        "lost_after_ms": settings.lost_after_ms if live else None,
        "max_freeze_ms": settings.max_freeze_ms,
    }
    chosen.update({name: recorded[name] for name in chosen if name in recorded})
    for name in ("policy", "max_skew_ms", "max_age_ms", "offset_ms"):
        asked = getattr(settings, name)
        chosen[name] = chosen[name] if asked is None else asked
    return PairingSettings(**chosen)


def _refuse_overwriting(sources: tuple[Source, Source] | Recording, outputs: list[Uri], record: str | None) -> None:
    """Make sure that no output and no recording is written to where something is read, or where another one is written."""
    read = (
        [sources.folder, sources.folder / "ir", sources.folder / "vis"]
        if isinstance(sources, Recording)
        else [_folder(source.uri.target) for source in sources if source.uri.scheme == "file"]
    )
    taken = {path.resolve() for path in read}
    written = [(str(uri), _folder(uri.target)) for uri in outputs if uri.scheme == "file"]
    for name, path in written + ([] if record is None else [(record, Path(record))]):
        if path.resolve() in taken:
            raise UsageError(f"expected outputs that are neither sources nor one another, got {name}; choose another name.")
        taken.add(path.resolve())


def _folder(target: str) -> Path:
    """What a file name stands for: the folder of a pattern, else the file or folder itself."""
    return Path(target).parent if frame_pattern(target) is not None else Path(target)


def _rate(sources: tuple[Source, Source]) -> float | None:
    """Nominal rate of the faster camera."""
    rates = [source.rate_hz for source in sources if source.rate_hz is not None]
    return max(rates) if rates else None


def _without_credentials(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    return [redact(text) for text in value] if isinstance(value, tuple) else value
