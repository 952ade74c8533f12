"""What a machine has for streams: what is there works, and what is missing is named with its fix."""

from __future__ import annotations

import json

import pytest

from refusion_edge.stream.outputs.video import VIDEO_ENCODINGS
from refusion_edge.stream.run import equipment
from refusion_edge.stream.run.equipment import find_equipment
from refusion_edge.stream.system_python import ask


def test_what_is_missing_is_named_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equipment, "is_installed", lambda _name: False)
    monkeypatch.setattr(equipment, "has_display", lambda: False)
    monkeypatch.setattr(equipment, "ask", lambda _code, _seconds: "")
    found = find_equipment()
    assert not any(item.usable for item in found.values())
    for name, fix in {"video files": "[stream]", "browser view": "[stream]", "window": "view://", "GStreamer": "apt"}.items():
        assert fix in found[name].fix, name


@pytest.mark.parametrize(
    ("elements", "usable"),
    [
        (["appsink", "videoconvert"], {"GStreamer"}),
        (["appsink", "videoconvert", "nvarguscamerasrc"], {"GStreamer", "Jetson camera"}),
        (["appsink", "videoconvert", "x264enc", "rtph264pay", "rtsp-server"], {"GStreamer", "RTSP output"}),
        (["appsink"], set()),
    ],
)
def test_gstreamer_is_judged_by_its_elements(monkeypatch: pytest.MonkeyPatch, elements: list[str], usable: set[str]) -> None:
    answer = json.dumps({"version": "GStreamer 1.22.0", "found": elements})
    monkeypatch.setattr(equipment, "ask", lambda _code, _seconds: answer)
    found = find_equipment()
    gstreamer = {name: found[name] for name in ("GStreamer", "Jetson camera", "RTSP output")}
    assert {name for name, item in gstreamer.items() if item.usable} == usable
    assert all("GStreamer 1.22.0" in item.reason for item in gstreamer.values())


def test_encoders_are_those_that_open_here() -> None:
    pytest.importorskip("av")
    found = find_equipment()["video files"]
    assert found.usable
    assert all(suffix in found.reason for suffix in VIDEO_ENCODINGS)
    assert ".mkv ffv1" in found.reason


def test_a_question_that_fails_has_no_answer() -> None:
    assert ask("print(6 * 7)", 10) == "42\n"
    assert ask("import nothing_of_this_name", 10) == ""
    assert ask("import time; time.sleep(9)", 0.2) == ""
