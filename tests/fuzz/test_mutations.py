"""Damaged files of every format: an error of ours or a value, within seconds and 1 GiB, and never anything else."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from refusion_edge.archive.manifest import Entry
from refusion_edge.arrays import Array, State
from refusion_edge.bench.measurement import Row, WindowSummary
from refusion_edge.bench.report import SCHEMA, describe_machine, row_document
from refusion_edge.bench.sensors import MachineState, MemoryUse
from refusion_edge.bench.statistics import spread
from refusion_edge.bench.subjects import Identity
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.cuda.program_file import program_bytes
from refusion_edge.evaluation.shards import SCHEMA as SHARD_SCHEMA
from refusion_edge.evaluation.shards import ShardOfReport
from refusion_edge.export.build import build
from refusion_edge.network.checkpoint import Checkpoint, safetensors_bytes, write_pth
from refusion_edge.network.parameters import PARAMETERS
from refusion_edge.network.quantization import CalibrationTable, quantizable_layers
from refusion_edge.rig.file import format_rig
from refusion_edge.rig.model import Lens, ParallaxModel, Rig, RigAlignment, RigSource
from tests.conftest import ROOT
from tests.fakes.programs import hollow_program
from tests.fuzz.mutations import FORMATS, zipped
from tests.stream.conftest import write_video

pytestmark = pytest.mark.slow

# `make test-fuzz` sets both.
COUNT = int(os.environ.get("REFUSION_EDGE_FUZZ_COUNT", "500"))
SEED = os.environ.get("REFUSION_EDGE_FUZZ_SEED", "20261129")
HAS_TORCH = importlib.util.find_spec("torch") is not None
VIDEOS = {"mkv": "ffv1", "mp4": "mpeg4", "avi": "mjpeg"}
PIXELS = {"ffv1": "gray", "mpeg4": "yuv420p", "mjpeg": "yuvj420p"}
NEED_TORCH = ("pth", "preset", "training")


def a_rig() -> bytes:
    lens = Lens("pinhole", (700.0, 701.0), (320.0, 240.0), (-0.1, 0.01, 0.0, 0.0))
    rows = ((1.0, 0.0, 3.0), (0.0, 1.0, -2.0), (0.0, 0.0, 1.0))
    alignments = (RigAlignment(2.0, rows, 0.4, "scene"), RigAlignment(float("inf"), rows))
    ir, vis = RigSource((640, 512), "v4l2:/dev/video0", (0, 16, 640, 480)), RigSource((640, 480), "rtsp://h/x", lens=lens)
    rig = Rig(ir, vis, alignments, time_offset_ms=1.5, parallax=ParallaxModel(700.0, 0.03))
    return format_rig(rig).encode()


def a_row() -> dict[str, Any]:
    state, times = MachineState({"cpu": 2000.0}, {"zone": 40.0}), spread(np.linspace(4, 6, 200))
    row = Row(
        Identity("ir_vis", "ir_vis", "fp32", (16, 24), "onnxruntime", 1), {"x": "0" * 64}, None, True, 3, 1.0,
        (WindowSummary(0.0, 3, 5.0, 6.0),), (), {"end_to_end": times, "infer": times}, (4.0, 6.0), 200.0, 1.0,
        MemoryUse(100.0, 5.0, None), None, "", state, state, None,
    )  # fmt: skip
    return json.loads(json.dumps(row_document(row)))  # type: ignore[no-any-return]


def calibration(folder: Path, suffix: str) -> bytes:
    path = folder / f"calibration.{suffix}"
    store = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    camera = np.array([[520.0, 0, 319.5], [0, 521, 255.5], [0, 0, 1]])
    facts = {"M1": camera, "D1": np.zeros((1, 5)), "M2": camera, "D2": np.zeros((1, 5)), "R": np.eye(3), "T": np.ones((3, 1))}
    for name, matrix in facts.items():
        store.write(name, matrix)
    store.write("rms", 0.3)
    store.release()
    return path.read_bytes()


def a_gif(picture: Array) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "GIF")
    return buffer.getvalue()


def video(path: Path, codec: str) -> bytes:
    draw = np.random.default_rng(5)
    scene = cv2.GaussianBlur(draw.integers(0, 255, (48, 96), np.uint8), (0, 0), 2)
    write_video(path, [np.ascontiguousarray(scene[:, 2 * n : 2 * n + 64]) for n in range(8)], codec=codec, pixels=PIXELS[codec])
    data = path.read_bytes()
    path.unlink()
    return data


def a_bundle(folder: Path) -> bytes:
    build(BuildSpec("ir_vis", "fp32", "onnxruntime", (16, 24), output=folder, network="fast"))
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    shutil.rmtree(folder)
    return zipped(files)


SITE = b"""network: fast
outputs: ['view://127.0.0.1:8080']
rigs:
  gate: {ir: 'test://ir?width=64', vis: 'test://vis?width=64', gain: clahe}
  yard: {ir: rtsp://10.0.0.7/ir, vis: clip.mkv, share: 2.5, record: yard, record_limit: 10000000}
"""


def a_shard() -> dict[str, Any]:
    names = [str(number) for number in range(3)]
    return asdict(
        ShardOfReport(
            SHARD_SCHEMA, 0, 1, 3, "1" * 64, "0" * 64, "ir_vis", ["evaluator:EN", "vifb:SSIM"], ["one"], names,
            [["a.png", "b.png", "c.png", "c.png"]] * 3, ["left.png"], [[[1.5, None]] * 3],
        )
    )  # fmt: skip


def sound_files(folder: Path, state: State) -> None:
    """One sound file per format."""
    load = {"average": 0.1, "busy_cores": 0.0, "cores": 2}
    report = {
        "schema": SCHEMA, "machine": asdict(describe_machine()), "load_before": load, "load_after": load, "loaded": False,
        "rows": [a_row()],
    }  # fmt: skip
    header = {"schema": "refusion-edge/bench-lines/1", "configuration": {}}
    recorded = {"schema": "refusion-edge/recording/1", "pairing": {"policy": "hold", "max_age_ms": 60.0, "max_skew_ms": None}}
    rows = "side,file,index,time_ns,arrived_ns,unchanged_since_ns\n" + "ir,0.png,0,0,0,0\nvis,0.png,0,0,0,0\n" * 4
    table = CalibrationTable("entropy", dict.fromkeys(quantizable_layers(PARAMETERS), 2.5), 16, "0" * 64)
    picture = np.random.default_rng(3).integers(0, 255, (24, 31, 3), np.uint8)
    files = {
        "safetensors": safetensors_bytes(Checkpoint("medical", state, {"note": "x"})),
        "rfx": program_bytes(hollow_program(state, 87)),
        "rig": a_rig(),
        "points": b"ir_x,ir_y,vis_x,vis_y\n" + b"10,20,30.5,40\n" * 6,
        "table": table.to_json().encode(),
        "recording": json.dumps(recorded).encode() + b"\n" + rows.encode(),
        "manifest": (json.dumps(asdict(Entry("1", "1.png", *"abcd"))) + "\n").encode() * 3,
        "shard": json.dumps(a_shard()).encode(),
        "site": SITE,
        "report": json.dumps(report).encode(),
        "lines": "".join(json.dumps(one) + "\n" for one in (header, a_row(), a_row())).encode(),
        **{suffix: cv2.imencode(f".{suffix}", picture)[1].tobytes() for suffix in ("png", "tiff", "jpg", "webp", "bmp")},
        "pgm": cv2.imencode(".pgm", picture[..., 0])[1].tobytes(),
        "gif": a_gif(picture),
        **{suffix: video(folder / f"x.{suffix}", codec) for suffix, codec in VIDEOS.items()},
        "bundle": a_bundle(folder / "bundle"),
        **{f"calibration.{suffix}": calibration(folder, suffix) for suffix in ("yml", "xml", "json")},
    }
    if HAS_TORCH:
        files |= trained(folder, state)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def trained(folder: Path, state: State) -> dict[str, bytes]:
    import torch

    from refusion_edge.train.settings import resolve
    from refusion_edge.train.state import initial_state, save_state

    settings, path = resolve("default", "ir_vis", device="cpu"), folder / "pth"
    write_pth(path, Checkpoint(None, state))
    pth = path.read_bytes()
    save_state(path, initial_state(settings, torch.device("cpu")), task="ir_vis", settings=settings, pairs=("a", "b"))
    preset = Path(resolve.__globals__["__file__"]).parent / "presets/default.toml"
    return {"pth": pth, "training": path.read_bytes(), "preset": preset.read_bytes()}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, random_state: State) -> dict[str, dict[str, Any]]:
    """What became of each format, tried in one go: to import everything once takes longer than a format."""
    folder, work = tmp_path_factory.mktemp("sound"), tmp_path_factory.mktemp("work")
    sound_files(folder, random_state)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "tests/fuzz/mutations.py")
    found = subprocess.run(
        [sys.executable, script, str(COUNT), SEED, str(folder)],
        cwd=work, env=environment, capture_output=True, text=True, timeout=60 + 20 * COUNT, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    return {outcome["format"]: outcome for outcome in map(json.loads, found.stdout.splitlines())}


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_end_in_one_line(outcomes: dict[str, dict[str, Any]], name: str) -> None:
    if name in NEED_TORCH and not HAS_TORCH:
        pytest.skip("needs torch")
    assert "problem" not in outcomes[name], outcomes[name]["problem"]
    assert outcomes[name]["refused"] > COUNT // 10, "the damage does not reach what is checked"
