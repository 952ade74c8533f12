"""The log of a run: always JSON lines, and TensorBoard if it is installed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import Self

from refusion_edge.files import output_error
from refusion_edge.machine import is_installed

LOG_NAME = "log.jsonl"


class RunLog:
    """Writes the log of a run; use it as a context manager.

    Args:
        folder: Folder of the run; lines are appended to its ``log.jsonl``.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG_NAME
        self._board = _board(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._board is not None:
            self._board.close()

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one line, and scalars to TensorBoard.

        Args:
            event: Kind of line: ``start``, ``step``, ``validation``, ``guard``, ``remark``, ``stop``.
            step: Step it belongs to.
            values: Named values; non-finite numbers become null.

        Raises:
            OutputError: The line cannot be written.
        """
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
        }
        line = json.dumps({"event": event, "step": step, **clean}, allow_nan=False)
        try:
            # Opened for each line, so that a killed run leaves whole lines.
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise output_error(self._path, error) from error
        if self._board is not None:
            for name, value in clean.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{event}/{name}", value, step)

    def show(self, step: int, images: Mapping[str, Tensor]) -> None:
        """Add images to TensorBoard, each (H, W) in [0, 1]; does nothing without it."""
        if self._board is not None:
            for name, image in images.items():
                self._board.add_image(name, image.clamp(0, 1), step, dataformats="HW")


def _board(folder: Path) -> Any:
    if not is_installed("tensorboard"):
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))
