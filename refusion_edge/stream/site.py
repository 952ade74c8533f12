"""Several rigs in one process, which share engines and a page, but not faults.

A site is a configuration file with a table ``rigs`` of names and settings. Settings outside the table apply to all rigs:

    network: fast
    outputs: [view://0.0.0.0:8080]
    rigs:
      gate: {ir: /dev/video0, vis: /dev/video2, rig: gate.yaml}
      yard: {ir: rtsp://10.0.0.7/ir, vis: rtsp://10.0.0.7/vis, share: 2}
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refusion_edge.documents import typed
from refusion_edge.errors import InputError, RefusionError, SourceLostError, StreamError, UsageError
from refusion_edge.files import read_file
from refusion_edge.stream.fused_stream import FusedStream
from refusion_edge.stream.outputs.server import PageServer
from refusion_edge.stream.run.config import MOST_BYTES, parse_config, settings_of
from refusion_edge.stream.run.settings import StreamSettings, override
from refusion_edge.stream.run.shared import EnginePool, Shared
from refusion_edge.stream.run.watchdog import Watchdog
from refusion_edge.stream.uri import frame_pattern, parse_output

SCHEMA = "refusion-edge/site/1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", re.ASCII)
_MOST_RIGS = 64
_LEAST_SHARE, _MOST_SHARE = 0.01, 100.0
_RETRY_S = 5.0
_POLL_S = 0.1
_END_S = 30.0
# Faults of cameras and parts that may be over when the rig is started again.
_PASSING = (SourceLostError, StreamError)
# Settings of the page and the whole process, which a single rig cannot have.
_OF_THE_SITE = ("token", "allow_origins", "tls", "headless")

Listener = Callable[[str, str, str], object]


@dataclass(frozen=True, slots=True)
class RigPlan:
    """One rig of a site.

    Attributes:
        name: Its name.
        settings: Its settings.
        share: Its share of the engines' time, relative to the other rigs.
    """

    name: str
    settings: StreamSettings
    share: float = 1.0


def has_rigs(path: str | os.PathLike[str]) -> bool:
    """Whether a configuration file is that of a site.

    Raises:
        InputError: It cannot be read.
    """
    return "rigs" in _parse(Path(path))


def read_site(
    path: str | os.PathLike[str], given: Mapping[str, Any] | None = None, *, trust: bool = False
) -> tuple[RigPlan, ...]:
    """Read the rigs of a site.

    Args:
        path: The configuration file.
        given: Settings that take precedence, for all rigs.
        trust: See ``refusion_edge.stream.run.config.read_config``.

    Raises:
        InputError: The file cannot be used; the message names the rig.
        UsageError: Two rigs write to the same output, their browser views differ, or there is none for ``clips`` or ``tls``.
    """
    path = Path(path)
    values = _parse(path)
    rigs = values.pop("rigs", None)
    if not isinstance(rigs, dict) or not 1 <= len(rigs) <= _MOST_RIGS:
        raise InputError(f"the rigs in {path} are not a table of 1 to {_MOST_RIGS} names", "write 'rigs: {gate: {ir: ...}}'")
    plans = tuple(_plan(name, own, values, path, given or {}, trust=trust) for name, own in rigs.items())
    taken: dict[str, str] = {}
    for plan in plans:
        for text in _written(plan.settings):
            if taken.setdefault(text, plan.name) != plan.name:
                raise UsageError(f"the rigs {taken[text]} and {plan.name} both write to {text}", "give each its own output")
    if len({uri for plan in plans for uri in _views(plan.settings)}) > 1:
        raise UsageError("all rigs share one page, but they name several", "write one view:// outside 'rigs'")
    if not any(_views(plan.settings) for plan in plans):
        for option in ("tls", "clips"):
            if any(getattr(plan.settings, option) is not None for plan in plans):
                raise UsageError(f"--{option} is for the browser view, which no rig has", "add -o view://, or leave it out")
    return plans


class Site:
    """Runs all rigs of a site, each with its own cameras, threads, outputs and counters.

    A rig that loses its cameras, or one of whose parts fails, is restarted after some seconds, and leaves the files that it
    wrote before as they are. Any other error ends only that rig.

    Args:
        plans: The rigs.
        announce: Called with a name and a message for the user.
        listener: Called with a name, and the place and the text of every event; it must not wait.
    """

    def __init__(
        self,
        plans: tuple[RigPlan, ...],
        *,
        announce: Callable[[str, str], object] = lambda _rig, _text: None,
        listener: Listener = lambda _rig, _where, _text: None,
    ) -> None:
        self._plans, self._announce, self._listener = plans, announce, listener
        self._stop = threading.Event()
        self._streams: dict[str, FusedStream] = {}
        self._restarts = dict.fromkeys((plan.name for plan in plans), 0)
        self._failures: dict[str, BaseException] = {}
        self._lock = threading.Lock()

    def run(self) -> None:
        """Run until every rig has ended.

        Raises:
            KeyboardInterrupt: A signal arrived; everything is closed by then.
            RefusionError: The error of the first rig that failed; the others ran to their ends.
        """
        page = self._page()
        pool, watchdog = EnginePool(), Watchdog()
        with page or contextlib.nullcontext():
            threads = [
                threading.Thread(target=self._keep_running, args=(plan, pool, page), name=f"rig {plan.name}", daemon=True)
                for plan in self._plans
            ]
            try:
                for thread in threads:
                    thread.start()
                while any(thread.is_alive() for thread in threads):
                    time.sleep(_POLL_S)
                    self._watch(watchdog)
            finally:
                watchdog.stop()
                self.stop()
                deadline_s = time.monotonic() + _END_S
                for thread in threads:
                    if thread.ident is not None:
                        thread.join(max(0.0, deadline_s - time.monotonic()))
        stuck = [thread.name for thread in threads if thread.is_alive()]
        if stuck:
            raise StreamError(
                f"some rigs did not end within {_END_S:g} s: {', '.join(stuck)}", "end the program and start it again"
            )
        for failure in self._failures.values():
            raise failure

    def stop(self) -> None:
        """End all rigs. May be called from any thread."""
        self._stop.set()
        with self._lock:
            streams = list(self._streams.values())
        for stream in streams:
            stream.stop()

    def report(self) -> dict[str, Any]:
        """The reports of all rigs so far, schema ``refusion-edge/site/1``; each covers the time since the last start."""
        with self._lock:
            streams = dict(self._streams)
        rigs = {}
        for plan in self._plans:
            stream, failure = streams.get(plan.name), self._failures.get(plan.name)
            rigs[plan.name] = {
                "restarts": self._restarts[plan.name],
                "error": str(failure) if isinstance(failure, RefusionError) else None,
                "report": None if stream is None else stream.report(),
            }
        return {"schema": SCHEMA, "rigs": rigs}

    def _page(self) -> PageServer | None:
        settings = self._plans[0].settings
        views = [uri for plan in self._plans for uri in _views(plan.settings)]
        if not views:
            return None
        tls = None if settings.tls is None else (Path(settings.tls[0]), Path(settings.tls[1]))
        return PageServer(
            parse_output(views[0]),
            rigs=[plan.name for plan in self._plans],
            token=settings.token,
            allow_origins=settings.allow_origins,
            announce=lambda text: self._announce("", text),
            tls=tls,
        )

    def _keep_running(self, plan: RigPlan, pool: EnginePool, page: PageServer | None) -> None:
        deadline_s = None if plan.settings.duration_s is None else time.monotonic() + plan.settings.duration_s
        while not self._stop.is_set():
            settings = plan.settings
            if restarts := self._restarts[plan.name]:
                settings = _beside_earlier(settings, restarts + 1)
            if deadline_s is not None:
                settings = replace(settings, duration_s=max(0.0, deadline_s - time.monotonic()))
            try:
                self._run_once(plan, settings, Shared(plan.name, pool, page, plan.share))
            except _PASSING as error:
                if deadline_s is not None and time.monotonic() + _RETRY_S > deadline_s:
                    self._failures[plan.name] = error
                    return
                self._restarts[plan.name] += 1
                self._announce(plan.name, f"{error}; trying again in {_RETRY_S:g} s")
                self._stop.wait(_RETRY_S)
            except BaseException as error:  # of this rig only; raised when all have ended
                self._failures[plan.name] = error
                self._announce(plan.name, f"ended: {error}")
                return
            else:
                return

    def _run_once(self, plan: RigPlan, settings: StreamSettings, shared: Shared) -> None:
        stream = FusedStream(settings, announce=lambda text: self._announce(plan.name, text), shared=shared)
        stream.listen(lambda where, text: self._listener(plan.name, where, text))
        with self._lock:
            self._streams[plan.name] = stream
            if self._stop.is_set():
                return
        stream.run()

    def _watch(self, watchdog: Watchdog) -> None:
        """Tell systemd that all is well, unless an engine is stuck."""
        with self._lock:
            streams = list(self._streams.values())
        if all(stream.health().alive for stream in streams):
            watchdog.watch(sum(stream.count for stream in streams), waiting=False)


def _parse(path: Path) -> dict[str, Any]:
    try:
        return parse_config(read_file(path, kind="configuration file", most_bytes=MOST_BYTES))
    except InputError as error:
        raise error if str(path) in error.problem else error.within(str(path)) from error


def _plan(name: str, own: object, shared: Mapping[str, Any], path: Path, given: Mapping[str, Any], *, trust: bool) -> RigPlan:
    where = f"rig {name} in {path}"
    if not _NAME.fullmatch(name):
        raise InputError(f"a rig in {path} has the name {name[:60]!r}", "use up to 40 letters, digits, - and _")
    if not isinstance(own, dict):
        raise InputError(f"the {where} is not a table of settings", "write 'NAME: {ir: ..., vis: ...}'")
    for key in _OF_THE_SITE:
        if key in own:
            raise InputError(f"the {where} sets '{key}', which applies to all rigs", "write it outside 'rigs'")
    values = {**shared, **own}
    try:
        share = typed(float, values.pop("share", 1.0), "share")
        if not _LEAST_SHARE <= share <= _MOST_SHARE:
            raise InputError(f"share is {share:g}", f"give a number from {_LEAST_SHARE:g} to {_MOST_SHARE:g}", got=share)
        settings = settings_of(values, path.parent, trust=trust)
    except InputError as error:
        raise error.within(where) from error
    settings = override(settings, {**given, "trust": trust})
    if "clips" in own and not _views(settings):
        raise InputError(f"the {where} sets 'clips', but has no browser view", "add view:// to its outputs, or leave it out")
    if not settings.outputs:
        raise InputError(f"the {where} has no output", "write 'outputs: [view://127.0.0.1:8080]' outside 'rigs'")
    return RigPlan(name, settings, share)


def _written(settings: StreamSettings) -> list[str]:
    """Places that only one rig can write to; files by their real paths, as one may have several names."""
    uris = [uri for uri in map(parse_output, settings.outputs) if uri.scheme not in ("view", "null")]
    places = [os.path.realpath(uri.target) if uri.scheme == "file" else uri.text for uri in uris]
    return places + ([] if settings.record is None else [os.path.realpath(settings.record)])


def _beside_earlier(settings: StreamSettings, number: int) -> StreamSettings:
    """The same settings, with files and folders beside those of earlier starts: ``out-2.mkv`` after ``out.mkv``.

    Args:
        settings: Those of the first start.
        number: Number of the start, which is in the new names; a higher one if a name with it is taken.
    """
    uris = [parse_output(text) for text in settings.outputs]
    written = [uri.target for uri in uris if uri.scheme == "file"] + ([] if settings.record is None else [settings.record])
    if not written:
        return settings
    while any(_is_taken(_numbered(path, number)) for path in written):
        number += 1
    outputs = tuple(_numbered(uri.target, number) if uri.scheme == "file" else uri.text for uri in uris)
    return replace(settings, outputs=outputs, record=None if settings.record is None else _numbered(settings.record, number))


def _numbered(name: str, number: int) -> str:
    path = Path(name)
    return str(path.with_name(f"{path.stem}-{number}{path.suffix}"))


def _is_taken(name: str) -> bool:
    pattern = frame_pattern(name)
    return os.path.lexists(name if pattern is None else pattern % 0)


def _views(settings: StreamSettings) -> list[str]:
    return [text for text in settings.outputs if parse_output(text).scheme == "view"]
