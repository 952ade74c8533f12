"""The configuration file of a stream: what it says arrives, what it cannot say is refused, and it survives being saved."""

from __future__ import annotations

import math
import stat
from dataclasses import fields
from pathlib import Path

import pytest

from refusion_edge.errors import InputError, UsageError
from refusion_edge.stream.run.config import SCHEMA, format_config, read_config, write_config
from refusion_edge.stream.run.settings import LIMITS, StreamSettings, make_settings, override
from tests.raising import raises


def saved(text: str, name: str = "site.yaml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_keys_are_the_settings() -> None:
    path = saved(
        f"schema: {SCHEMA}\nir: test://ir?rate=9\nvis: 0\nnetwork: auto\noutputs: [view://127.0.0.1:0, null://]\n"
        "max_skew_ms: 20\nmarks: false\ndistance: far\n"
    )
    expected = StreamSettings(
        ir="test://ir?rate=9", vis="0", network="auto", outputs=("view://127.0.0.1:0", "null://"), max_skew_ms=20.0,
        marks=False, distance=math.inf,
    )  # fmt: skip
    assert read_config(path) == expected


def test_paths_begin_at_the_folder_of_the_file() -> None:
    path = saved(
        "ir: clips/ir.mkv\nvis: file://vis?rate=9\nrig: rig.yaml\nbundle: /opt/bundle\nrecord: rec\noutputs: [out.mp4, shm://x]\n"
        "tls: [cert.pem, /key.pem]\n",
        "etc/site.yaml",
    )
    settings = read_config(path)
    assert (settings.ir, settings.vis) == ("etc/clips/ir.mkv", "file://etc/vis?rate=9")
    assert (settings.rig, settings.bundle, settings.record) == ("etc/rig.yaml", "/opt/bundle", "etc/rec")
    assert settings.outputs == ("etc/out.mp4", "shm://x")
    assert settings.tls == ("etc/cert.pem", "/key.pem")


@pytest.mark.parametrize(
    "settings",
    [
        StreamSettings(),
        StreamSettings(ir="clips/ir.mkv", vis="file://vis%20s?rate=9", rig="../rig.yaml", outputs=("out/%04i.png", "null://")),
        StreamSettings(ir="0", vis="gst:videotestsrc ! appsink", distance=math.inf, marks=False, tls=("a", "b"), trust=True),
        StreamSettings(replay="yes", smooth_s=0.5, frames=3, refine=2.0, token="no: {", allow_origins=("https://a.b",)),
    ],
)
@pytest.mark.parametrize("name", ["site.yaml", "etc/deep/site.yaml"])
def test_what_is_saved_is_read_again(settings: StreamSettings, name: str) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_config(path, settings)
    again = read_config(path, trust=settings.trust)
    there = {field.name: getattr(again, field.name) for field in fields(again)}
    here = {field.name: getattr(settings, field.name) for field in fields(settings)}
    for paths in ("rig", "ir", "replay"):
        if there[paths] is not None and here[paths] is not None:
            assert Path(there.pop(paths)).resolve() == Path(here.pop(paths)).resolve()
    if here["vis"] is not None:
        there["vis"], here["vis"] = (text.replace("etc/deep/../../", "") for text in (there["vis"], here["vis"]))
    there["outputs"] = tuple(text.replace("etc/deep/../../", "") for text in there["outputs"])
    there["tls"] = there["tls"] and tuple(text.replace("etc/deep/../../", "") for text in there["tls"])
    assert there == here


def test_only_the_owner_reads_a_file_with_a_secret() -> None:
    for name, settings in {
        "token": StreamSettings(token="geheim"),
        "password": StreamSettings(ir="rtsp://u:geheim@host/x"),
        "output": StreamSettings(outputs=("rtsp://u:geheim@:8554/x",)),
    }.items():
        write_config(name, settings)
        assert stat.S_IMODE(Path(name).stat().st_mode) == 0o600, name
    write_config("plain", StreamSettings(ir="0"))
    assert stat.S_IMODE(Path("plain").stat().st_mode) & 0o044


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("netwrk: fast\n", "netwrk", "'network'"),
        ("rigs: {a: {ir: '0', vis: '1'}}\n", "rigs", "--config"),
        ("outputs: view://\n", "outputs", ""),
        ("policy: nearset\n", "policy", ""),
        ("max_skew_ms: -1\n", "max_skew_ms", "0"),
        ("max_skew_ms: .nan\n", "max_skew_ms", ""),
        ("frames: true\n", "frames", ""),
        ("trust: true\n", "trust", "--trust"),
        ("ir: gst:filesrc location=x ! appsink\n", "GStreamer", "--trust"),
        ("vis: GST://filesrc location=x ! appsink\n", "GStreamer", "--trust"),
        ("outputs: ['Gst://fakesink']\n", "GStreamer", "--trust"),
        ("bundle: a\nweights: b\n", "bundle", ""),
        ("schema: refusion-edge/rig/1\n", "refusion-edge/rig/1", SCHEMA),
        ("- ir\n", "list", ""),
        ("ir: [\n", "YAML", ""),
        ("ir: a\nir: b\n", "twice", ""),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_file_and_the_key(text: str, problem: str, remedy: str) -> None:
    with raises(InputError, "site.yaml", problem, remedy=remedy):
        read_config(saved(text))


def test_a_file_that_is_absent_is_named() -> None:
    with raises(InputError, "nowhere.yaml"):
        read_config("nowhere.yaml")


@pytest.mark.parametrize("name", LIMITS)
def test_numbers_out_of_range_are_refused(name: str) -> None:
    low, high = LIMITS[name]
    StreamSettings(**{name: low})
    with raises(UsageError, name, expected=(low, high)):
        StreamSettings(**{name: low - 1})
    if high < math.inf:
        with raises(UsageError, name, expected=(low, high)):
            StreamSettings(**{name: high + 1})


def test_what_is_given_takes_precedence_and_the_place_of_what_it_excludes() -> None:
    stored = StreamSettings(ir="0", vis="1", bundle="b", network="fast", record="r")
    assert override(stored, {"network": "auto"}) == StreamSettings(ir="0", vis="1", bundle="b", network="auto", record="r")
    assert override(stored, {"weights": "w"}) == StreamSettings(ir="0", vis="1", weights="w", network="fast", record="r")
    assert override(stored, {"replay": Path("d")}) == StreamSettings(replay="d", bundle="b", network="fast")
    assert override(StreamSettings(replay="d"), {"ir": 0, "vis": 1}) == StreamSettings(ir="0", vis="1")
    with raises(UsageError, "netwrk", remedy="'network'"):
        make_settings({"netwrk": "fast"})
    with raises(UsageError, "recrod", remedy="'record'"):
        override(stored, {"recrod": "x"})


def test_the_file_is_short_and_plain() -> None:
    assert format_config(StreamSettings(ir="0", network="fast"), Path()) == f"schema: {SCHEMA}\nir: '0'\nnetwork: fast\n"
