"""The node ``fusion``: topics ``ir`` and ``vis`` in, ``fused`` out. A thin adapter around ``refusion_ros.fusion``."""

from __future__ import annotations

import sys
from functools import partial

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from refusion_edge.errors import RefusionError
from refusion_edge.stream.frames import SIDES
from refusion_edge.stream.run.coupling import Coupling, Settings
from refusion_ros.fusion import Fusion

PARAMETERS = {
    "network": "", "bundle": "", "backend": "auto", "threads": 0, "rig": "", "gain": "", "skew_ms": -1.0, "resize": False,
}  # fmt: skip


def main() -> int:
    """Run until ROS shuts down; the exit code."""
    rclpy.init()
    node = Node("fusion")
    values = {name: node.declare_parameter(name, default).value for name, default in PARAMETERS.items()}
    settings = Settings(max_skew_ms=values.pop("skew_ms"), **values)
    log = node.get_logger()
    try:
        with Coupling(settings, log.info) as coupling:
            log.info(f"network: {coupling.network}")
            publisher = node.create_publisher(Image, "fused", qos_profile_sensor_data)
            fusion = Fusion(coupling, Image, publisher.publish, log.warning)
            for side in SIDES:
                node.create_subscription(Image, side, partial(fusion.take, side), qos_profile_sensor_data)
            rclpy.spin(node)
    except RefusionError as error:
        log.fatal(str(error))
        return error.exit_code
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
