"""URIs of sources and outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from refusion_edge.errors import RigError, UsageError
from refusion_edge.stream.uri import choose_source, frame_pattern, host_and_port, parse_output, parse_source, redact
from tests.raising import raises


@pytest.mark.parametrize(
    ("text", "scheme", "target"),
    [
        ("csi://0", "csi", "0"),
        ("v4l2:///dev/video2?format=y16", "v4l2", "/dev/video2"),
        ("/dev/video0", "v4l2", "/dev/video0"),
        ("file://a%20b.mkv", "file", "a b.mkv"),
        ("frames/f_%04i.png", "file", "frames/f_%04i.png"),
        ("gst:v4l2src ! videoconvert", "gst", "v4l2src ! videoconvert"),
        ("test://ir?rate=9", "test", "ir"),
    ],
)
def test_sources_by_name(text: str, scheme: str, target: str) -> None:
    uri = parse_source(text)
    assert (uri.scheme, uri.target) == (scheme, target)


def test_an_encoded_zero_byte_is_refused_in_a_name() -> None:
    for parse in (parse_source, parse_output):
        with raises(UsageError):
            parse("file://a%00b.mkv")
        assert parse("a%00b.mkv").target == "a%00b.mkv"


@pytest.mark.parametrize(("text", "hint"), [("rstp://host/x", "rtsp://"), ("v4l://0", "v4l2://"), ("tset://ir", "test://")])
def test_the_nearest_scheme_is_suggested(text: str, hint: str) -> None:
    with raises(UsageError, f"'{hint}'"):
        parse_source(text)


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://admin:geheim@10.0.0.7:554/live",
        "rtsp://admin:ge%40heim@10.0.0.7/live?token=geheim",
        "gst:rtspsrc location=rtsp://10.0.0.7/ user-id=admin user-pw=geheim ! decodebin",
        "RTSP://admin:geheim@host/x",
        "http://host/video?user=admin&password=geheim",
    ],
)
def test_credentials_are_never_shown(text: str) -> None:
    shown = redact(text)
    assert "heim" not in shown
    assert "admin" not in shown
    assert ("10.0.0.7" in shown) == ("10.0.0.7" in text)
    assert "heim" not in str(parse_source(text))
    assert "heim" not in repr(parse_source(text))


def test_patterns_and_ports() -> None:
    assert frame_pattern("a/f_%04i.png") == "a/f_%04d.png"
    assert frame_pattern("a/%d.png") == "a/%d.png"
    assert frame_pattern("a/f.png") is None
    assert host_and_port(parse_output("view://"), "127.0.0.1", 8080) == ("127.0.0.1", 8080)
    assert host_and_port(parse_output("view://0.0.0.0:90"), "127.0.0.1", 8080) == ("0.0.0.0", 90)
    assert host_and_port(parse_output("rtsp://@:8554/x"), "127.0.0.1", 1) == ("127.0.0.1", 8554)
    with raises(UsageError, "port"):
        host_and_port(parse_output("view://x:99999"), "127.0.0.1", 1)


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("/dev/v4l/by-id/usb-FLIR_Boson_123-video-index0", "/dev/v4l/by-id/usb-FLIR_Boson_123-video-index0"),
        (
            "/dev/v4l/by-path/pci-0000:00:14.0-usb-0:1:1.0-video-index0",
            "/dev/v4l/by-path/pci-0000:00:14.0-usb-0:1:1.0-video-index0",
        ),
        ("0", "/dev/video0"),
        ("12", "/dev/video12"),
        ("v4l2://1", "/dev/video1"),
        ("2?format=y16", "/dev/video2"),
    ],
)
def test_cameras_by_path_and_number(text: str, device: str) -> None:
    uri = parse_source(text)
    assert (uri.scheme, uri.target) == ("v4l2", device)
    assert uri.options == ({"format": "y16"} if "?" in text else {})


def test_a_file_named_like_a_camera_is_a_file() -> None:
    Path("0").touch()
    assert parse_source("0").scheme == "file"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("rtsp://u:a/b@h:554/live", "rtsp://u:a%2Fb@h:554/live"),
        ("rtsp://u:a?b#c d@h/live?x=1", "rtsp://u:a%3Fb%23c%20d@h/live?x=1"),
        ("rtsp://u:a@b@h/live", "rtsp://u:a%40b@h/live"),
        ("rtsp://u:a%40b@h/live", "rtsp://u:a%40b@h/live"),
        ("rtsp://u:5%@h/live", "rtsp://u:5%25@h/live"),
        ("rtsp://h:554/a@b", "rtsp://h:554/a@b"),
        ("rtsp://h/live?u=a:b@c", "rtsp://h/live?u=a:b@c"),
        ("http://[::1]:80/x@y", "http://[::1]:80/x@y"),
        ("http://h/a b.mp4", "http://h/a%20b.mp4"),
    ],
)
def test_credentials_become_part_of_a_valid_address(text: str, address: str) -> None:
    assert parse_source(text).address == address


@pytest.mark.parametrize(
    ("given", "stored", "trusted", "target"),
    [
        (None, "clip.mkv", False, "clip.mkv"),
        ("other.mkv", "gst:filesrc ! fakesink", False, "other.mkv"),
        ("gst:tee ! filesink location=a", None, False, "tee ! filesink location=a"),
        (None, "gst:v4l2src ! videoconvert", True, "v4l2src ! videoconvert"),
    ],
)
def test_the_command_line_comes_before_the_rig(given: str | None, stored: str | None, trusted: bool, target: str) -> None:
    uri = choose_source(given, stored, trusted=trusted)
    assert uri is not None
    assert uri.target == target


def test_there_may_be_no_source() -> None:
    assert choose_source(None, None, trusted=True) is None


@pytest.mark.parametrize(
    "text", ["gst:v4l2src ! videoconvert", "gst:fakesrc ! filesink location=/etc/passwd", "gst://videotestsrc"]
)
def test_a_pipeline_in_a_rig_has_to_be_trusted(text: str) -> None:
    with raises(RigError, remedy="--trust"):
        choose_source(None, text, trusted=False)


@pytest.mark.parametrize(
    "sink", ["filesink location=/etc/passwd", "tcpserversink host=0.0.0.0", "FileSink", "appsink", "multiudpsink"]
)
def test_a_pipeline_in_a_rig_sends_frames_nowhere_else(sink: str) -> None:
    with raises(RigError, got=sink.split(maxsplit=1)[0]):
        choose_source(None, f"gst:videotestsrc ! tee name=t ! queue ! {sink} t. ! videoconvert", trusted=True)
