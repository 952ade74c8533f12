"""Damages files and reads them, in processes with little memory and time; the script behind ``test_mutations``.

Usage: ``mutations.py COUNT SEED FOLDER``. The folder holds one sound file per format, under the name of the format; the outcome
of each format is printed as one line of JSON. A number in a problem names the damage: the same seed repeats it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import resource
import signal
import struct
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from refusion_edge.archive.manifest import Manifest
from refusion_edge.archive.shards import ALL
from refusion_edge.bench.history import SweepLog, read_baseline
from refusion_edge.calibration.rig.points import read_points
from refusion_edge.calibration.rig.stereo import read_calibration
from refusion_edge.cuda.program_file import parse_program
from refusion_edge.errors import InputError, RefusionError
from refusion_edge.evaluation.shards import merge
from refusion_edge.fuser import load
from refusion_edge.images.io import read_image
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.parameters import PARAMETERS
from refusion_edge.network.quantization import quantizable_layers, read_table
from refusion_edge.rig.file import read_rig
from refusion_edge.stream.outputs.recording import read_recording
from refusion_edge.stream.site import read_site
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.sources.source import CorruptFrameError
from refusion_edge.stream.uri import parse_source

MOST_BYTES = 1 << 30  # beyond what the imports have taken
MOST_SECONDS = 10
LAYERS = quantizable_layers(PARAMETERS)

# What stands where a number, a text or a structure did.
EXTREMES: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 31, 1 << 63, 10**400, -1e308, float("nan"), float("inf"), "", "\ud800", "\0", "x" * 10_000, [], {},
    [[[[]]]], ["a"], {"a": 1}, "\x1b[2J\n", "../../x", 0.5,
)  # fmt: skip
WORDS = (
    b"-1", b"1e999", b"NaN", b".inf", b"null", b"[]", b"{}", b'"x"', b"9" * 5000, b"1:1:1", b"&a ", b"*a", b"!!int ''",
    b"[" * 3000, b"{" * 3000, b"<a>" * 300, b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\n", b"<!DOCTYPE a>", b"010", b"true",
    b": ", b",",
)  # fmt: skip


def any_bytes(data: bytes, draw: random.Random) -> bytes:
    """Flip, cut, repeat, insert, or replace a number."""
    damaged = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(damaged) + 1)
        # Headers matter more than what comes after them.
        if draw.random() < 0.5:
            place = draw.randrange(min(len(damaged), 4096) + 1)
        what = draw.randrange(6)
        if what == 0 and place < len(damaged):
            damaged[place] ^= 1 << draw.randrange(8)
        elif what == 1:
            del damaged[place : place + draw.randint(1, 64)]
        elif what == 2:
            damaged[place:place] = damaged[place : place + draw.randint(1, 200)] * draw.randint(1, 20)
        elif what == 3:
            damaged[place : place + draw.choice((0, 1, 4, 8))] = draw.choice(WORDS)
        elif what == 4:
            damaged[place : place + 8] = draw.randbytes(draw.randint(1, 16))
        else:
            del damaged[max(place, 1) :]
    return bytes(damaged)


def any_node(document: Any, draw: random.Random) -> Any:
    """Replace, remove or double a part of a document."""
    if isinstance(document, dict | list) and document and draw.random() < 0.85:
        keys = list(document) if isinstance(document, dict) else range(len(document))
        key: Any = draw.choice(keys)
        what = draw.random()
        if what < 0.1:
            del document[key]
        elif what < 0.15 and isinstance(document, dict):
            document[f"{key}x"] = document.pop(key)
        elif what < 0.2 and isinstance(document, list):
            document.extend([document[key]] * draw.choice((1, 1000)))
        else:
            document[key] = any_node(document[key], draw)
        return document
    return draw.choice(EXTREMES)


def any_json(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.4:
        return any_bytes(data, draw)
    return json.dumps(any_node(json.loads(data), draw)).encode()


def any_lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines()
    number = draw.randrange(len(lines))
    lines[number] = any_json(lines[number], draw)
    return b"\n".join(lines) + b"\n"


def any_safetensors(data: bytes, draw: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    if draw.random() < 0.3:
        return any_bytes(data, draw)
    header = json.loads(data[8 : 8 + length])
    if draw.random() < 0.5:
        about = any_node(json.loads(header["__metadata__"]["refusion-edge"]), draw)
        header["__metadata__"]["refusion-edge"] = json.dumps(about)
        text = json.dumps(header).encode()
    else:
        text = any_json(json.dumps(header).encode(), draw)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def any_pth(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return any_bytes(data, draw)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(buffer, "w") as after:
        for entry in before.infolist():
            content = before.read(entry)
            after.writestr(entry.filename, any_bytes(content, draw) if entry.filename.endswith("data.pkl") else content)
    return buffer.getvalue()


def any_program(data: bytes, draw: random.Random) -> bytes:
    """A manifest that was changed, with its length and hashes made right again."""
    if draw.random() < 0.2:
        return any_bytes(data, draw)
    length = struct.unpack_from("<Q", data, 16)[0]
    text = any_json(data[64 : 64 + length], draw)
    body = bytes(64) + text
    body += bytes(-len(body) % 256) + data[-(-(64 + length) // 256) * 256 :]
    return struct.pack("<8sIIQQ32s", data[:8], 1, 0, len(text), len(body), hashlib.sha256(text).digest()) + body[64:]


def any_png(data: bytes, draw: random.Random) -> bytes:
    """Half of them with a header whose checksum is right."""
    if draw.random() < 0.5:
        return any_bytes(data, draw)
    header = bytearray(data[12:29])
    for _ in range(draw.randint(1, 3)):
        header[draw.randrange(4, 17)] = draw.choice((0, 1, 8, 16, 127, 255))
    return data[:12] + bytes(header) + struct.pack(">I", zlib.crc32(header)) + data[33:]


def any_bundle(data: bytes, draw: random.Random) -> bytes:
    """A bundle in a zip, one file of which was changed, with its hash in the manifest made right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as before:
        files = {name: before.read(name) for name in before.namelist()}
    name = draw.choice(sorted(files))
    mutate = {"manifest.json": any_json, "weights.safetensors": any_safetensors}.get(name, any_bytes)
    files[name] = mutate(files[name], draw)
    if name != "manifest.json":
        manifest = json.loads(files["manifest.json"])
        manifest["files"][name] = hashlib.sha256(files[name]).hexdigest()
        files["manifest.json"] = json.dumps(manifest).encode()
    return zipped(files)


def zipped(files: dict[str, bytes]) -> bytes:
    """Files by name in an uncompressed zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as after:
        for name, content in files.items():
            after.writestr(name, content)
    return buffer.getvalue()


def of_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Read bytes as the file that they would be."""

    def take(data: bytes) -> object:
        Path(name).write_bytes(data)
        return read(Path(name))

    return take


def recording_of(data: bytes) -> object:
    """The first line describes a recording, the others are its table of frames."""
    folder = Path("recording")
    folder.mkdir(exist_ok=True)
    settings, _, rows = data.partition(b"\n")
    (folder / "recording.json").write_bytes(settings)
    (folder / "frames.csv").write_bytes(rows)
    (folder / "pairs.csv").write_bytes(b"not_shown\n3\n")
    return read_recording(folder)


def any_recording(data: bytes, draw: random.Random) -> bytes:
    settings, _, rows = data.partition(b"\n")
    if draw.random() < 0.6:
        return any_json(settings, draw).replace(b"\n", b" ") + b"\n" + rows
    return settings + b"\n" + any_bytes(rows, draw)


def bundle_of(data: bytes) -> object:
    folder = Path("bundle")
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(data)) as files:
        files.extractall(folder)
    with load(folder) as fuser:
        return fuser.task


def video_of(suffix: str) -> Callable[[bytes], object]:
    """Read all frames; those that are damaged are left out by the program, too."""

    def take(data: bytes) -> object:
        Path(f"x.{suffix}").write_bytes(data)
        whole = damaged = 0
        with open_source(parse_source(f"x.{suffix}"), "ir") as source:
            while True:
                try:
                    if source.read() is None:
                        break
                    whole += 1
                except CorruptFrameError:
                    damaged += 1
        if not whole or damaged:
            raise InputError(f"{damaged} damaged frames")
        return whole

    return take


def manifest_of(path: Path) -> object:
    with Manifest(path.parent, ALL) as manifest:
        return manifest.entries


def sweep_of(path: Path) -> object:
    with SweepLog(path, {}) as log:
        return log.rows


def preset_of(data: bytes) -> object:
    from refusion_edge.train.settings import resolve

    Path("preset.toml").write_bytes(data)
    return resolve("preset.toml", "ir_vis", device="cuda")


def checkpoint_of(data: bytes) -> object:
    from refusion_edge.train.state import read_state

    Path("step-1.safetensors").write_bytes(data)
    return read_state(Path("step-1.safetensors"))


Mutate = Callable[[bytes, random.Random], bytes]
FORMATS: dict[str, tuple[Mutate, Callable[[bytes], object]]] = {
    "safetensors": (any_safetensors, of_file("x.safetensors", read_checkpoint)),
    "pth": (any_pth, of_file("x.pth", read_checkpoint)),
    "rfx": (any_program, parse_program),
    "rig": (any_bytes, of_file("rig.yaml", read_rig)),
    "calibration.yml": (any_bytes, of_file("c.yml", lambda path: read_calibration([path]))),
    "calibration.xml": (any_bytes, of_file("c.xml", lambda path: read_calibration([path]))),
    "calibration.json": (any_bytes, of_file("c.json", lambda path: read_calibration([path]))),
    "points": (any_bytes, of_file("p.csv", read_points)),
    "table": (any_json, lambda data: read_table(data, "x", LAYERS)),
    "recording": (any_recording, recording_of),
    "manifest": (any_lines, of_file("manifest.jsonl", manifest_of)),
    "shard": (any_json, of_file("shard.json", lambda path: merge([path]))),
    "site": (any_bytes, of_file("site.yaml", read_site)),
    "report": (any_json, of_file("old.json", read_baseline)),
    "lines": (any_lines, of_file("sweep.jsonl", sweep_of)),
    "png": (any_png, of_file("x.png", read_image)),
    "tiff": (any_bytes, of_file("x.tiff", read_image)),
    **{suffix: (any_bytes, of_file(f"x.{suffix}", read_image)) for suffix in ("jpg", "webp", "gif", "bmp", "pgm")},
    **{suffix: (any_bytes, video_of(suffix)) for suffix in ("mkv", "mp4", "avi")},
    "bundle": (any_bundle, bundle_of),
    "preset": (any_bytes, preset_of),
    "training": (any_safetensors, checkpoint_of),
}


def try_all(name: str, data: bytes, count: int, seed: str) -> dict[str, Any]:
    """Read a sound file, then damaged ones; stops at the first that ends otherwise than with one line."""
    mutate, read = FORMATS[name]
    read(data)
    refused = 0
    for number in range(count):
        damaged = mutate(data, random.Random(f"{seed} {name} {number}"))
        Path(f"{name}.number").write_text(str(number))
        # Of processor time, so that a busy machine does not count, and some more for what waits without using any.
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        signal.alarm(12 * MOST_SECONDS)
        try:
            read(damaged)
        except RefusionError as error:
            refused += 1
            if not str(error).isprintable() or "Traceback" in str(error):
                return {"problem": f"number {number}: {error}"}
        except BaseException:
            return {"problem": f"number {number}: {traceback.format_exc()[-1500:]}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return {"refused": refused}


def outcomes(count: int, seed: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Try each format in a process of its own, so that one that crashes does not take the others with it."""
    for path in sorted(folder.iterdir()):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES, size + MOST_BYTES))
            os.write(writing, json.dumps(try_all(path.name, path.read_bytes(), count, seed)).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            found = file.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        number = Path(f"{path.name}.number")
        last = number.read_text() if number.exists() else "none"
        yield {"format": path.name, **(json.loads(found) if found else {"problem": f"exit code {code} at number {last}"})}


if __name__ == "__main__":
    for outcome in outcomes(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])):
        print(json.dumps(outcome), flush=True)
