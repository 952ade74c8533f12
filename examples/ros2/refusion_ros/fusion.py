"""What the node does with messages, without ROS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refusion_edge.errors import InputError
from refusion_edge.stream.frames import SIDES, FusedFrame, Side
from refusion_edge.stream.run.coupling import Coupling
from refusion_ros.messages import SECOND, fill, stamp_ns, to_array

# A bag that starts again, or a simulation that is reset.
_BACK_NS = SECOND


class Fusion:
    """Turns image messages of two cameras into fused ones. Any thread may call it.

    Args:
        coupling: Pairs and fuses; owned by the caller.
        make: Makes an empty image message.
        publish: Called with each fused message.
        warn: Called with what is wrong with a message, which is left out.
    """

    def __init__(
        self, coupling: Coupling, make: Callable[[], Any], publish: Callable[[Any], object], warn: Callable[[str], object]
    ) -> None:
        self._coupling, self._make, self._publish, self._warn = coupling, make, publish, warn
        self._latest_ns: dict[Side, int | None] = dict.fromkeys(SIDES)
        self._frame_id = ""

    def take(self, side: Side, message: Any) -> None:
        """Accept a message; publish the fused ones that it completes, with the frame of the visible camera.

        Raises:
            ShapeError: The cameras differ in size, and there is no rig.
            RefusionError: The rig does not fit, or the network fails.
        """
        time_ns, latest_ns = stamp_ns(message), self._latest_ns[side]
        if latest_ns is not None and time_ns < latest_ns - _BACK_NS:
            self._coupling.restart()
            self._latest_ns = dict.fromkeys(SIDES)
            self._warn(f"{side}: time went back by {(latest_ns - time_ns) / SECOND:.1f} s; pairing restarts")
        self._latest_ns[side] = time_ns
        if side == "vis":
            self._frame_id = message.header.frame_id
        try:
            image = to_array(message)
        except InputError as error:
            self._warn(f"{side}: {error}")
            return
        self._coupling.push(side, image, time_ns, self._send)

    def _send(self, frame: FusedFrame) -> None:
        self._publish(fill(self._make(), frame.image, frame.time_ns, self._frame_id))
