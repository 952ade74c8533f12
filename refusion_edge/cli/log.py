"""The log of a stream as lines of JSON, for programs that collect logs."""

from __future__ import annotations

import datetime
import json
import queue
import sys
import threading
from typing import Any, Literal

from typing_extensions import Self

from refusion_edge.errors import RefusionError

Level = Literal["info", "warning", "error"]

_KEPT = 1000
_END_S = 2.0


class JsonLog:
    """Writes lines of JSON to standard error, from a separate thread, so that a slow reader never delays the stream.

    Each line has ``time`` (UTC), ``level``, ``where`` (a camera, ``engine``, ``view``, ...), ``message`` and, if there are
    several rigs, ``rig``. The last line before the end of the program says how it ended, with ``exit_code``. Use it as a
    context manager.
    """

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(_KEPT)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._lines.put(None, timeout=_END_S)
        except queue.Full:
            return  # nobody reads
        self._thread.join(_END_S)

    def add(self, level: Level, where: str, message: str, **fields: Any) -> None:
        """Add a line. If too many lines are waiting, it is dropped, and the next line says how many were dropped."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": now, "level": level, "where": where, "message": message, **fields}
        if self._lost:
            line["lost_before"] = self._lost
        try:
            self._lines.put_nowait(json.dumps(line, ensure_ascii=True))
            self._lost = 0
        except queue.Full:
            self._lost += 1

    def end(self, error: BaseException | None) -> int:
        """Add the last line; returns the exit code.

        Args:
            error: Why the stream ended; None for its regular end.
        """
        if error is None:
            self.add("info", "stream", "ended", exit_code=0)
            return 0
        if isinstance(error, KeyboardInterrupt):
            self.add("info", "stream", "interrupted", exit_code=130)
            return 130
        if not isinstance(error, RefusionError):
            raise error
        self.add("error", "stream", error.problem, remedy=error.remedy, exit_code=error.exit_code)
        return error.exit_code

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            print(line, file=sys.stderr, flush=True)
