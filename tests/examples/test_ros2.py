"""The ROS 2 package: messages, their pairing, and the adapter over stand-ins of rclpy and launch."""

from __future__ import annotations

import importlib
import runpy
import sys
import types
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, ShapeError
from refusion_edge.fuser import Fuser, load
from refusion_edge.stream.run.coupling import Coupling, Settings
from tests.conftest import ROOT
from tests.raising import raises

PACKAGE = ROOT / "examples/ros2"
SECOND = 1_000_000_000


def empty() -> SimpleNamespace:
    """An image message without pixels."""
    header = SimpleNamespace(stamp=SimpleNamespace(sec=0, nanosec=0), frame_id="")
    return SimpleNamespace(header=header, height=0, width=0, encoding="", is_bigendian=0, step=0, data=b"")


def message(pixels: Array, encoding: str, time_ns: int = 0, frame_id: str = "camera", gap: int = 0) -> SimpleNamespace:
    made, rows = empty(), np.ascontiguousarray(pixels).reshape(pixels.shape[0], -1).view(np.uint8)
    made.header.stamp.sec, made.header.stamp.nanosec = time_ns // SECOND, time_ns % SECOND
    made.header.frame_id, made.encoding = frame_id, encoding
    made.height, made.width = pixels.shape[:2]
    made.step = rows.shape[1] + gap
    made.data = np.pad(rows, ((0, 0), (0, gap)), constant_values=99).tobytes()
    return made


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(PACKAGE))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "refusion_ros"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def fuser() -> Iterator[Fuser]:
    with load("ir_vis", network="fast", streaming=True) as opened:
        yield opened


@pytest.mark.parametrize("gap", [0, 5])
def test_every_encoding_gives_gray_or_bgr(package: None, gap: int, rng: np.random.Generator) -> None:
    to_array = importlib.import_module("refusion_ros.messages").to_array
    gray, wide = rng.integers(0, 256, (12, 18), np.uint8), rng.integers(0, 65536, (12, 18), np.uint16)
    color, four = rng.integers(0, 256, (12, 18, 3), np.uint8), rng.integers(0, 256, (12, 18, 4), np.uint8)
    for pixels, encoding, expected in (
        (gray, "mono8", gray), (gray, "8UC1", gray), (wide, "mono16", wide), (wide, "16UC1", wide),
        (wide.view(np.int16), "16SC1", wide.view(np.int16)), (wide.astype(np.float32), "32FC1", wide.astype(np.float32)),
        (color, "bgr8", color), (color, "8UC3", color), (color, "rgb8", color[..., ::-1]), (four, "bgra8", four[..., :3]),
        (four, "rgba8", four[..., 2::-1]),
    ):  # fmt: skip
        read = to_array(message(pixels, encoding, gap=gap))
        assert read.dtype.isnative
        assert np.array_equal(read, expected), encoding
    big = message(wide.byteswap(), "mono16", gap=gap)
    big.is_bigendian = 1
    assert np.array_equal(to_array(big), wide)
    # Gray in YUV: luma beside chroma of 128.
    yuy2 = np.dstack([np.full((12, 18), 16 + 219 // 2, np.uint8), np.full((12, 18), 128, np.uint8)])
    for encoding, pixels in (("yuv422_yuy2", yuy2), ("yuv422", yuy2[..., ::-1])):
        assert np.abs(to_array(message(pixels, encoding, gap=gap)).astype(int) - 127).max() <= 1


def test_messages_that_cannot_be_read_are_refused(package: None, rng: np.random.Generator) -> None:
    to_array = importlib.import_module("refusion_ros.messages").to_array
    gray = rng.integers(0, 256, (12, 18), np.uint8)
    with raises(InputError, "bayer_rggb8", remedy="mono8"):
        to_array(message(gray, "bayer_rggb8"))
    short = message(gray, "mono8")
    short.data = short.data[:-1]
    with raises(InputError, "12x18"):
        to_array(short)
    with raises(InputError, "yuv422_yuy2"):
        to_array(message(np.dstack([gray, gray])[:, :17], "yuv422_yuy2"))
    for encoding in ("rgb8", "mono16"):
        nothing = empty()
        nothing.encoding = encoding
        with raises(InputError, encoding):
            to_array(nothing)


def test_messages_are_paired_and_fused_with_their_stamps(package: None, fuser: Fuser, rng: np.random.Generator) -> None:
    fusion_class = importlib.import_module("refusion_ros.fusion").Fusion
    published: list[Any] = []
    warned: list[str] = []
    fusion = fusion_class(Coupling(Settings(), fuser=fuser), empty, published.append, warned.append)
    begin = 1_700_000_000 * SECOND
    ir = rng.integers(7000, 9000, (32, 40), np.uint16)
    vis = rng.integers(0, 256, (32, 40, 3), np.uint8)
    for index in range(6):
        fusion.take("ir", message(ir, "mono16", begin + index * 100_000_000, "thermal"))
        fusion.take("vis", message(vis, "rgb8", begin + index * 100_000_000 + 7, "color"))
    assert len(published) >= 5
    for index, made in enumerate(published[:5]):
        assert (made.header.stamp.sec, made.header.stamp.nanosec) == (1_700_000_000, index * 100_000_000 + 7)
        assert (made.header.frame_id, made.encoding, made.height, made.width, made.step) == ("color", "bgr8", 32, 40, 120)
        assert len(made.data) == 32 * 120
        assert np.frombuffer(made.data, np.uint8).std() > 5
    # A bag that starts again; and a message that cannot be read is left out.
    count = len(published)
    fusion.take("ir", message(ir, "bayer_rggb8", begin))
    for index in range(3):
        fusion.take("ir", message(ir, "mono16", begin - 60 * SECOND + index * 100_000_000))
        fusion.take("vis", message(vis, "bgr8", begin - 60 * SECOND + index * 100_000_000))
    assert len(published) >= count + 2
    assert any("60" in text for text in warned)
    assert any("bayer_rggb8" in text for text in warned)


def test_sizes_that_differ_need_a_rig(package: None, fuser: Fuser, rng: np.random.Generator) -> None:
    fusion_class = importlib.import_module("refusion_ros.fusion").Fusion
    fusion = fusion_class(Coupling(Settings(), fuser=fuser), empty, [].append, [].append)
    fusion.take("ir", message(rng.integers(0, 256, (32, 40), np.uint8), "mono8"))
    with raises(ShapeError, "32x40", "36x48", remedy="--rig"):
        fusion.take("vis", message(rng.integers(0, 256, (36, 48), np.uint8), "mono8"))


class _Node:
    """A stand-in of rclpy's node that keeps what it is asked for."""

    made: _Node

    def __init__(self, name: str) -> None:
        _Node.made = self
        self.name, self.subscriptions, self.published, self.said = name, {}, [], []
        self.parameters = {"network": "fast"}

    def declare_parameter(self, name: str, default: Any) -> SimpleNamespace:
        return SimpleNamespace(value=self.parameters.get(name, default))

    def get_logger(self) -> SimpleNamespace:
        return SimpleNamespace(info=self.said.append, warning=self.said.append, fatal=self.said.append)

    def create_publisher(self, _kind: Any, topic: str, _qos: Any) -> SimpleNamespace:
        assert topic == "fused"
        return SimpleNamespace(publish=self.published.append)

    def create_subscription(self, _kind: Any, topic: str, callback: Any, _qos: Any) -> None:
        self.subscriptions[topic] = callback

    def destroy_node(self) -> None:
        self.name = ""


@pytest.mark.parametrize("rig", ["", "nowhere.yaml"])
def test_the_adapter_connects_topics_and_ends_in_order(
    package: None, rig: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = rng.integers(0, 256, (32, 40), np.uint8)
    ended: list[bool] = []

    def spin(node: _Node) -> None:
        for index in range(3):
            for topic in ("ir", "vis"):
                node.subscriptions[topic](message(picture, "mono8", index * 100_000_000))
        raise KeyboardInterrupt

    monkeypatch.setattr(_Node, "declare_parameter", lambda _self, name, default: SimpleNamespace(
        value={"network": "fast", "rig": rig}.get(name, default)))  # fmt: skip
    stand_ins = {
        "rclpy": {"init": lambda: None, "spin": spin, "try_shutdown": lambda: ended.append(True)},
        "rclpy.executors": {"ExternalShutdownException": type("ExternalShutdownException", (Exception,), {})},
        "rclpy.node": {"Node": _Node},
        "rclpy.qos": {"qos_profile_sensor_data": object()},
        "sensor_msgs": {},
        "sensor_msgs.msg": {"Image": empty},
    }
    for name, values in stand_ins.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    code = importlib.import_module("refusion_ros.node").main()
    assert ended == [True]
    assert _Node.made.name == ""
    if rig:
        assert code != 0
        assert rig in _Node.made.said[-1]
    else:
        assert code == 0
        assert len(_Node.made.published) >= 2


def test_the_launch_file_names_parameters_and_topics_of_the_node(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[dict[str, Any]] = []
    stand_ins = {
        "launch": {"LaunchDescription": list},
        "launch.actions": {"DeclareLaunchArgument": lambda name, default_value: (name, default_value)},
        "launch.substitutions": {"LaunchConfiguration": str},
        "launch_ros": {},
        "launch_ros.actions": {"Node": lambda **words: nodes.append(words)},
        "launch_ros.parameter_descriptions": {"ParameterValue": lambda name, value_type: (name, value_type)},
    }
    for name, values in stand_ins.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    made = runpy.run_path(str(PACKAGE / "launch/fusion.launch.py"))["generate_launch_description"]()
    assert all(isinstance(default, str) for _, default in made[:-1])
    (node,) = nodes
    source = (PACKAGE / "refusion_ros/node.py").read_text()
    (parameters,) = node["parameters"]
    kinds = {"skew_ms": float, "resize": bool, "threads": int}
    texts = ("network", "bundle", "backend", "rig", "gain")
    assert {name: kind for name, (_, kind) in parameters.items()} == {**dict.fromkeys(texts, str), **kinds}
    assert all(f'"{name}"' in source for name in parameters)
    assert [topic for topic, _ in node["remappings"]] == ["ir", "vis", "fused"]


def test_the_package_is_described_as_colcon_expects() -> None:
    described = ElementTree.parse(PACKAGE / "package.xml").getroot()
    name = described.findtext("name")
    assert name == "refusion_ros"
    assert (PACKAGE / "resource" / name).is_file()
    assert described.findtext("export/build_type") == "ament_python"
    needed = {element.text for element in described.iter("exec_depend")}
    assert needed == {"rclpy", "sensor_msgs", "launch_ros"}
