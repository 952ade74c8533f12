"""Settings of a stream as plain values, and the pairing settings that follow from options, recording and rig."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from refusion_edge.documents import typed
from refusion_edge.errors import RefusionError, UsageError
from refusion_edge.rig.model import GainMethod, Polarity, Rig
from refusion_edge.stream.frames import MS, SECOND, SIDES
from refusion_edge.stream.pairing.failover import Failover, Limits
from refusion_edge.stream.pairing.pairer import Pairer, Policy
from refusion_edge.stream.processing.output_range import VideoRange
from refusion_edge.text import redact

LIMITS: dict[str, tuple[float, float]] = {
    "max_skew_ms": (0, 1e6),
    "max_age_ms": (0, 1e6),
    "offset_ms": (-1e6, 1e6),
    "lost_after_ms": (0, 1e6),
    "max_freeze_ms": (0, 1e6),
    "give_up_s": (0, 1e6),
    "distance": (1e-3, math.inf),
    "refine": (0.1, 100),
    "smooth_s": (0, 1e6),
    "duration_s": (0, 1e6),
    "frames": (1, math.inf),
    "record_limit": (1, math.inf),
}
"""Least and greatest value of the numeric settings."""
_EXCLUSIVE = (("bundle", "weights"), ("replay", "ir"), ("replay", "vis"), ("replay", "record"))
FAR = "far"
"""The word for an infinite ``distance``."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Options of the command ``stream``, by the same names; None leaves the choice to the rig, a recording or a default.

    They are also the keyword arguments of ``refusion_edge.stream`` and the keys of a configuration file, see
    ``refusion_edge.stream.run.config``.

    Attributes:
        best_effort: Whether a camera that does not grant the requested mode is used in the nearest one.
        ir: URI of the infrared source.
        vis: URI of the visible source.
        replay: Folder of a recording to replay instead.
        outputs: URIs of outputs.
        record: Folder to record raw frames to.
        record_limit: Largest size of the recording in bytes; its oldest parts are removed. None for no limit.
        bundle: Engine bundle.
        weights: Weights file.
        task: Fusion task.
        network: Name of the network, or ``auto`` for the better one that keeps up with the cameras, see
            ``refusion_edge.stream.run.networks``; None for that of the weights or the bundle, and ``refusion`` for a task.
        backend: Back end of the network.
        threads: Threads of the back end; 0 for its default.
        policy: Pairing policy.
        max_skew_ms: Maximum time difference in a pair.
        max_age_ms: Maximum age of a held frame (policy ``hold``).
        offset_ms: Added to the time stamps of ir.
        lost_after_ms: Silence after which a camera counts as lost.
        max_freeze_ms: Time of unchanged infrared content after which the visible camera continues alone.
        give_up_s: Time without a frame of either camera after which the stream ends.
        rig: Rig file.
        distance: Working distance of the rig in meters.
        refine: Largest change of the mount that is followed, in pixels from the rig; None keeps the rig fixed.
        resize: Whether infrared images are resized to the visible size if there is no rig.
        gain: Gain control of 16-bit infrared.
        polarity: Whether the infrared camera shows hot objects white or black.
        output_range: Output range of the fused video.
        smooth_s: Time constant of gain and range.
        gray: Whether the color of the visible camera is left out.
        marks: Whether losses, freezes and held frames are marked in the image.
        headless: Whether to open no window, even if there is a display.
        duration_s: End after this time.
        frames: End after this many fused frames.
        token: Token that viewers have to present.
        allow_origins: Addresses under which reverse proxies show the browser view.
        tls: Files of a certificate and its key with which the browser view is served, or None.
        clips: Folder for videos that viewers of the browser view record, or None if they must not.
        hash: Whether all fused frames are hashed.
        overwrite: Whether files of earlier runs are replaced: videos, images and the recording.
        trust: Whether pipelines named in the rig or a configuration file, and compiled engines built elsewhere, may run.

    Raises:
        UsageError: A number is out of range, or two settings contradict each other.
    """

    best_effort: bool = False
    ir: str | None = None
    vis: str | None = None
    replay: str | None = None
    outputs: tuple[str, ...] = ()
    record: str | None = None
    record_limit: int | None = None
    bundle: str | None = None
    weights: str | None = None
    task: str | None = None
    network: str | None = None
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
    refine: float | None = None
    resize: bool = False
    gain: GainMethod | None = None
    polarity: Polarity | None = None
    output_range: VideoRange = "smooth"
    smooth_s: float = 1.0
    gray: bool = False
    marks: bool = True
    headless: bool = False
    duration_s: float | None = None
    frames: int | None = None
    token: str | None = None
    allow_origins: tuple[str, ...] = ()
    tls: tuple[str, str] | None = None
    clips: str | None = None
    hash: bool = False
    overwrite: bool = False
    trust: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                bounds = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
                raise UsageError(f"{name} is {value:g}", f"give a number {bounds}", expected=(low, high), got=value)
        if self.bundle is not None and self.weights is not None:
            raise UsageError("a bundle and a weights file were given, but a stream has one engine", "leave one of them out")

    def shown(self) -> dict[str, Any]:
        """The settings as plain values for the report, without credentials."""
        return {
            field.name: _without_credentials(getattr(self, field.name)) for field in fields(self) if field.name != "token"
        }  # fmt: skip


def make_settings(values: Mapping[str, Any], *, error: type[RefusionError] = UsageError) -> StreamSettings:
    """Turn plain values into settings, checking every name, type and range.

    Args:
        values: By the names of ``StreamSettings``. Paths may be path objects, ``ir`` and ``vis`` the number of a camera, and
            ``distance`` may be ``FAR``.
        error: Type of exception to raise.

    Raises:
        RefusionError: Of the type ``error``: a name is unknown (the remedy names the nearest one), or a value cannot be used.
    """
    plain = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in values.items()}
    for side in SIDES:
        if type(plain.get(side)) is int:
            plain[side] = str(plain[side])
    # Infinity is refused everywhere else.
    far = plain.get("distance") in (FAR, math.inf)
    if far:
        del plain["distance"]
    try:
        settings = typed(StreamSettings, plain, "", error=error)
        return replace(settings, distance=math.inf) if far else settings
    except UsageError as problem:
        raise error(problem.problem, problem.remedy, expected=problem.expected, got=problem.got) from problem


def override(stored: StreamSettings, given: Mapping[str, Any]) -> StreamSettings:
    """Replace some settings of a configuration file, or of the defaults.

    Args:
        stored: The settings to start from. Those that a given setting excludes are dropped: a recording replaces two cameras,
            and weights replace a bundle.
        given: As ``make_settings`` takes them.

    Raises:
        UsageError: See there.
    """
    kept = {field.name: value for field in fields(stored) if (value := getattr(stored, field.name)) != field.default}
    for one, other in _EXCLUSIVE:
        for name, excluded in ((one, other), (other, one)):
            if given.get(name) is not None and given.get(excluded) is None:
                kept.pop(excluded, None)
    return make_settings({**kept, **given})


@dataclass(frozen=True, slots=True)
class PairingSettings:
    """The pairing settings in effect, from options, recording, rig and defaults; kept in recordings.

    Attributes:
        policy: Pairing policy.
        max_skew_ms: Maximum time difference in a pair, or None for a measured one.
        max_age_ms: Maximum age of a held frame (policy ``hold``).
        offset_ms: Added to the time stamps of ir.
        lost_after_ms: Silence after which a camera counts as lost, or None if the sources cannot be lost.
        max_freeze_ms: Time of unchanged infrared content after which the visible camera continues alone.
    """

    policy: Policy
    max_skew_ms: float | None
    max_age_ms: float
    offset_ms: float
    lost_after_ms: float | None
    max_freeze_ms: float

    def failover(self, rig: Rig | None = None) -> Failover:
        """Create the failover, with its pairer, for these settings.

        Args:
            rig: Rig that the frames have to fit, or None.

        Raises:
            UsageError: The policy is unknown, or a limit is negative.
        """
        offset_ns = round(self.offset_ms * MS)
        pairer = Pairer(
            self.policy,
            max_skew_ns=None if self.max_skew_ms is None else round(self.max_skew_ms * MS),
            max_age_ns=round(self.max_age_ms * MS),
            max_wait_ns=SECOND + abs(offset_ns),
        )
        limits = None
        if self.lost_after_ms is not None:
            limits = Limits(round(self.lost_after_ms * MS), round(self.max_freeze_ms * MS))
        sizes_wh = None if rig is None else {side: rig.source(side).size_wh for side in SIDES}
        return Failover(pairer, limits, sizes_wh, offset_ns=offset_ns)


def choose_pairing(
    settings: StreamSettings, rig: Rig | None, recorded: Mapping[str, Any] | None, *, live: bool
) -> PairingSettings:
    """Choose each pairing setting: the option, else the recording, else the rig, else a default.

    Args:
        settings: Options of the stream.
        rig: Rig, or None.
        recorded: The settings of the recording that is replayed, or None.
        live: Whether cameras can be lost.
    """
    known = (recorded or {}).get("pairing", {})
    chosen: dict[str, Any] = {
        "policy": "nearest",
        "max_skew_ms": None,
        "max_age_ms": 500.0,
        "offset_ms": (rig.time_offset_ms if rig else None) or 0.0,
        "lost_after_ms": settings.lost_after_ms if live else None,
        "max_freeze_ms": settings.max_freeze_ms,
    }
    chosen.update({name: known[name] for name in chosen if name in known})
    for name in ("policy", "max_skew_ms", "max_age_ms", "offset_ms"):
        asked = getattr(settings, name)
        chosen[name] = chosen[name] if asked is None else asked
    return PairingSettings(**chosen)


def _without_credentials(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    return [redact(text) for text in value] if isinstance(value, tuple) else value
