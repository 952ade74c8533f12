"""Starts the node: ros2 launch refusion_ros fusion.launch.py ir:=/thermal/image_raw vis:=/camera/image_raw rig:=rig.yaml."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

TOPICS = {"ir": "/thermal/image_raw", "vis": "/camera/image_raw", "fused": "/fused/image_raw"}
TEXTS = {"network": "", "bundle": "", "backend": "auto", "rig": "", "gain": ""}
OTHERS = {"skew_ms": ("-1.0", float), "resize": ("false", bool), "threads": ("0", int)}


def generate_launch_description() -> LaunchDescription:
    """Arguments for topics and parameters, and the node."""
    defaults = {**TOPICS, **TEXTS, **{name: default for name, (default, _) in OTHERS.items()}}
    kinds = {**dict.fromkeys(TEXTS, str), **{name: kind for name, (_, kind) in OTHERS.items()}}
    parameters = {name: ParameterValue(LaunchConfiguration(name), value_type=kind) for name, kind in kinds.items()}
    remappings = [(name, LaunchConfiguration(name)) for name in TOPICS]
    node = Node(package="refusion_ros", executable="fusion", name="fusion", parameters=[parameters], remappings=remappings)
    return LaunchDescription([*(DeclareLaunchArgument(name, default_value=text) for name, text in defaults.items()), node])
