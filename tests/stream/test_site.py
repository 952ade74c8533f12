"""Several rigs in one process."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("aiohttp", reason="the browser view needs the extra [stream]")

from refusion_edge.errors import InputError, MisfitError, SourceLostError, UsageError
from refusion_edge.stream import site as site_module
from refusion_edge.stream.fused_stream import FusedStream
from refusion_edge.stream.run.shared import EnginePool, Shared
from refusion_edge.stream.site import Site, read_site
from tests.raising import raises
from tests.stream.conftest import camera

Cli = Callable[..., tuple[int, str, str]]
CAMERAS = f"ir: '{camera('ir')}', vis: '{camera('vis')}'"
FILES = f"ir: '{camera('ir', live=0, frames=20)}', vis: '{camera('vis', live=0, frames=20)}'"


def write(text: str) -> str:
    Path("site.yaml").write_text(text)
    return "site.yaml"


def two(first: str, second: str, shared: str = "outputs: ['null://']") -> str:
    return write(f"network: fast\nthreads: 1\n{shared}\nrigs:\n  gate: {{{first}}}\n  yard: {{{second}}}\n")


def test_shared_settings_are_those_of_every_rig_and_its_own_take_precedence() -> None:
    plans = read_site(two(f"{CAMERAS}, gain: clahe", f"{CAMERAS}, share: 2", "gain: linear\noutputs: ['null://']"))
    assert [(plan.name, plan.settings.gain, plan.share) for plan in plans] == [("gate", "clahe", 1.0), ("yard", "linear", 2.0)]
    plans = read_site("site.yaml", {"gain": "plateau", "duration_s": 3.0})
    assert [(plan.settings.gain, plan.settings.duration_s) for plan in plans] == [("plateau", 3.0)] * 2


@pytest.mark.parametrize(
    ("text", "kind", "named"),
    [
        ("rigs: []", InputError, "site.yaml"),
        ("rigs: {}", InputError, "site.yaml"),
        ("outputs: ['null://']\nrigs: {gate: 5}", InputError, "gate"),
        (f"outputs: ['null://']\nrigs: {{'a/b': {{{CAMERAS}}}}}", InputError, "a/b"),
        (f"outputs: ['null://']\nrigs: {{gate: {{{CAMERAS}, nettwork: fast}}}}", InputError, "gate"),
        (f"outputs: ['null://']\nrigs: {{gate: {{{CAMERAS}, share: 0}}}}", InputError, "share"),
        (f"outputs: ['null://']\nrigs: {{gate: {{{CAMERAS}, token: abc}}}}", InputError, "token"),
        (f"rigs: {{gate: {{{CAMERAS}}}}}", InputError, "output"),
        (f"outputs: [out.mkv]\nrigs: {{gate: {{{CAMERAS}}}, yard: {{{CAMERAS}}}}}", UsageError, "out.mkv"),
        (
            f"rigs: {{gate: {{{CAMERAS}, outputs: [out]}}, yard: {{{CAMERAS}, outputs: ['./x/../out']}}}}",
            UsageError,
            "yard",
        ),
        (f"outputs: ['null://']\nrecord: r\nrigs: {{gate: {{{CAMERAS}}}, yard: {{{CAMERAS}}}}}", UsageError, "yard"),
        (f"outputs: ['null://']\nclips: c\nrigs: {{gate: {{{CAMERAS}}}}}", UsageError, "--clips"),
        (
            f"rigs: {{gate: {{{CAMERAS}, outputs: ['view://']}}, yard: {{{CAMERAS}, outputs: ['null://'], clips: c}}}}",
            InputError,
            "yard",
        ),
        (f"outputs: ['null://']\ntls: [c.pem, k.pem]\nrigs: {{gate: {{{CAMERAS}}}}}", UsageError, "--tls"),
        (
            f"rigs: {{gate: {{{CAMERAS}, outputs: ['view://:1']}}, yard: {{{CAMERAS}, outputs: ['view://:2']}}}}",
            UsageError,
            "page",
        ),
    ],
)
def test_sites_that_cannot_be_run_are_refused(text: str, kind: Any, named: str) -> None:
    with raises(kind, named):
        read_site(write(text))


def test_rigs_from_files_give_what_each_gives_alone(run_cli: Cli) -> None:
    words = ("--network", "fast", "--threads", 1, "-o", "null://", "--hash", "--json", "alone.json", "--overwrite")
    sources = [tuple(camera(side, live=0, frames=20, seed=seed) for side in ("ir", "vis")) for seed in (1, 2)]
    alone, rigs = [], []
    for ir, vis in sources:
        assert run_cli("stream", "--ir", ir, "--vis", vis, *words)[0] == 0
        alone.append(json.loads(Path("alone.json").read_text())["output_sha256"])
        rigs.append(f"ir: '{ir}', vis: '{vis}', hash: true")
    code, out, _ = run_cli("stream", "--config", two(*rigs), "--json", "site.json")
    assert code == 0
    assert "rig gate" in out
    document = json.loads(Path("site.json").read_text())
    assert document["schema"] == "refusion-edge/site/1"
    found = document["rigs"]
    assert [found[name]["report"]["output_sha256"] for name in ("gate", "yard")] == alone
    assert alone[0] != alone[1]


def test_the_error_of_one_rig_is_its_own(run_cli: Cli) -> None:
    Path("bad.mkv").write_bytes(b"no video")
    code, _, err = run_cli("stream", "--config", two("ir: bad.mkv, vis: bad.mkv", FILES), "--json", "site.json")
    assert code == InputError.exit_code
    assert "bad.mkv" in err
    found = json.loads(Path("site.json").read_text())["rigs"]
    assert found["yard"]["report"]["pairs"]["shown"] == 20
    assert found["yard"]["error"] is None
    assert "bad.mkv" in found["gate"]["error"]


@pytest.mark.slow
def test_bundles_of_a_site_are_rebuilt_only_when_told_to(run_cli: Cli) -> None:
    assert run_cli("build", "--network", "fast", "--precision", "fp32", "--backend", "onnxruntime", "-o", "bundle")[0] == 0
    manifest = Path("bundle/manifest.json")
    fitting = manifest.read_text()
    foreign = json.loads(fitting) | {"target": {"system": "linux", "architecture": "riscv64", "device": "any"}}
    manifest.write_text(json.dumps(foreign))
    Path("site.yaml").write_text(f"outputs: ['null://']\nbundle: bundle\nrigs:\n  gate: {{{FILES}}}\n  yard: {{{FILES}}}\n")
    assert run_cli("stream", "--config", "site.yaml", "--json", "out.json")[0] == MisfitError.exit_code
    assert json.loads(manifest.read_text()) == foreign
    code, _, err = run_cli("stream", "--config", "site.yaml", "--json", "out.json", "--rebuild", "--overwrite")
    assert code == 0, err
    assert manifest.read_text() == fitting
    report = json.loads(Path("out.json").read_text())
    assert [rig["report"]["pairs"]["shown"] for rig in report["rigs"].values()] == [20, 20]


@pytest.mark.parametrize("text", [f"network: fast\n{FILES.replace(', vis', chr(10) + 'vis')}\n", None])
def test_rebuilding_without_a_bundle_is_refused(run_cli: Cli, text: str | None) -> None:
    name = two(FILES, FILES) if text is None else write(text + "outputs: ['null://']\n")
    code, _, err = run_cli("stream", "--config", name, "--rebuild")
    assert (code, "--rebuild" in err) == (UsageError.exit_code, True)


@pytest.mark.slow
def test_a_rig_whose_cameras_are_lost_is_started_again_and_the_other_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_module, "_RETRY_S", 0.3)
    lost = f"ir: '{camera('ir')}', vis: '{camera('vis')}', give_up_s: 0.3"
    plans = read_site(two(lost, CAMERAS), {"duration_s": 4.0})
    said: list[tuple[str, str]] = []
    opened = site_module.FusedStream.run
    calls: list[str] = []

    def failing(stream: Any) -> None:
        if stream.settings.give_up_s == 0.3 and not calls:
            calls.append("gate")
            raise SourceLostError("neither camera sent a frame", "check cables")
        opened(stream)

    site = Site(plans, announce=lambda rig, text: said.append((rig, text)))
    with mock.patch.object(site_module.FusedStream, "run", failing):
        site.run()
    found = site.report()["rigs"]
    assert (found["gate"]["restarts"], found["yard"]["restarts"]) == (1, 0)
    assert found["gate"]["report"]["pairs"]["shown"] > 10
    assert found["yard"]["report"]["pairs"]["shown"] > 10
    assert [rig for rig, text in said if "again" in text] == ["gate"]


def test_a_rig_that_is_started_again_keeps_what_it_wrote_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_module, "_RETRY_S", 0.0)
    outputs = "outputs: [out.mkv, frames, 'one/%03i.png', 'null://'], record: raw"
    rig = f"{FILES}, {outputs}"
    plans = read_site(write(f"network: fast\nthreads: 1\nrigs:\n  gate: {{{rig}}}\n"))
    Path("out-2.mkv").write_bytes(b"of somebody else")
    opened = site_module.FusedStream.run
    calls: list[dict[str, bytes]] = []

    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}

    def failing(stream: Any) -> None:
        opened(stream)
        calls.append(files())
        if len(calls) == 1:
            raise SourceLostError("neither camera sent a frame", "check cables")

    site = Site(plans)
    with mock.patch.object(site_module.FusedStream, "run", failing):
        site.run()
    assert site.report()["rigs"]["gate"]["restarts"] == 1
    after = files()
    assert {name: after[name] for name in calls[0]} == calls[0]
    new = {name.partition("/")[0] for name in after.keys() - calls[0].keys()}
    assert new == {"out-3.mkv", "frames-3", "one", "raw-3"}
    assert len(list(Path("one").glob("*-3.png"))) == 20


def test_a_rig_that_is_not_on_the_page_runs_in_a_site_with_a_certificate() -> None:
    settings = read_site(two(FILES, f"{FILES}, outputs: ['null://']", "outputs: ['view://127.0.0.1:0']\ntls: [c.pem, k.pem]"))
    (yard,) = [plan for plan in settings if plan.name == "yard"]
    stream = FusedStream(yard.settings, shared=Shared("yard", EnginePool()))
    stream.run()
    report = stream.report()
    assert report is not None
    assert report["pairs"]["shown"] == 20


def get(address: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_the_page_has_a_grid_and_a_page_for_each_rig() -> None:
    said: list[str] = []
    site = Site(
        read_site(two(CAMERAS, CAMERAS, "outputs: ['view://127.0.0.1:0']")), announce=lambda _rig, text: said.append(text)
    )
    running = threading.Thread(target=site.run)
    running.start()
    try:
        deadline_s = time.monotonic() + 30
        while time.monotonic() < deadline_s and not any("browser view" in text for text in said):
            time.sleep(0.05)
        (address,) = (text.partition(": ")[2].rstrip("/") for text in said if "browser view" in text)
        while time.monotonic() < deadline_s and '"rigs": {}' in get(f"{address}/status.json")[1]:
            time.sleep(0.05)
        status, page = get(f"{address}/")
        assert status == 200
        assert page.index('data-rig="gate"') < page.index('data-rig="yard"')
        assert get(f"{address}/gate/")[0] == get(f"{address}/yard/page.js")[0] == get(f"{address}/grid.js")[0] == 200
        assert get(f"{address}/roof/")[0] == get(f"{address}/ws")[0] == 404
        while time.monotonic() < deadline_s and get(f"{address}/readyz")[0] != 200:
            time.sleep(0.05)
        assert get(f"{address}/healthz")[0] == 200
        rigs = json.loads(get(f"{address}/status.json")[1])["rigs"]
        assert set(rigs) == {"gate", "yard"}
        figures = get(f"{address}/metrics")[1]
        for rig in rigs:
            assert f'refusion_edge_camera_up{{rig="{rig}",camera="ir"}} 1' in figures
        assert figures.count("# TYPE refusion_edge_camera_up gauge") == 1
    finally:
        site.stop()
        running.join(30)
    assert not running.is_alive()
