"""Build the wheel, check its contents, and try it in a clean environment from another folder.

If there are a C++ compiler and the Python headers, do the same with the native kernels.

python .ci/check_wheel.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("ir_vis", "medical", "multi_focus", "multi_exposure")
GRAPHS = (
    "cpu-fp32",
    *(f"tensorrt-{form}-{bits}" for form in ("folded", "literal") for bits in ("fp32", "fp16")),
)
REQUIRED = (
    "refusion_edge/py.typed",
    *(f"refusion_edge/network/graphs/{graph}.onnx" for graph in GRAPHS),
    *(f"refusion_edge/network/weights/{task}.safetensors" for task in TASKS),
    *(f"refusion_edge/network/weights/{task}.md" for task in TASKS),
    *(f"refusion_edge/{room}/__init__.py" for room in ("kernels", "export", "train", "calibration")),
    *(f"refusion_edge/train/presets/{preset}.toml" for preset in ("default", "paper")),
    "refusion_edge/images/samples/ir_vis/ir/street.png",
    "refusion_edge/accuracy/vectors/ir_vis.npz",
    "refusion_edge/evaluation/page.html.j2",
)
MAX_MB = 4.5


def main() -> int:
    """Run all checks; exit with a message at the first that fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        python = str(folder / "venv" / "bin" / "python")
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "--quiet"]
        _run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)])
        (wheel,) = folder.glob("*.whl")
        check_files(wheel)
        _run([*pip, "install", str(wheel)])

        # A flat checkout in the working directory would be imported instead of the wheel.
        work = folder / "work"
        work.mkdir()
        environment = {**os.environ, "REFUSION_EDGE_CACHE": str(folder / "cache"), "PYTHONSAFEPATH": "1"}
        _run([python, "-c", "import importlib.util as u; assert u.find_spec('torch') is None, 'torch was installed'"], work)
        command = str(folder / "venv" / "bin" / "refusion-edge")
        _run([command, "doctor"], work, environment)
        _run([command, "build", "--task", "ir_vis", "--precision", "fp16", "-o", "bundle"], work, environment)
        _run([command, "verify", "bundle"], work, environment)
        _run([command, "demo", "--bundle", "bundle", "-o", "demo"], work, environment)
        if not (work / "demo" / "montage.png").is_file():
            sys.exit("demo wrote no montage")

        if can_compile():
            native = folder / "native"
            _run([*pip, "wheel", "--no-deps", "--wheel-dir", str(native), str(ROOT), "-Cwheel.cmake=true"])
            (wheel,) = native.glob("*.whl")
            check_files(wheel, native=True)
            _run([*pip, "install", "--force-reinstall", "--no-deps", str(wheel)])
            _run([command, "build", "--precision", "fp32", "--backend", "native", "-o", "native"], work, environment)
            _run([command, "verify", "native"], work, environment)
        else:
            print("wheel: without a C++ compiler and the Python headers, the wheel with the native kernels was not checked")
    print("wheel: files, clean installation, build, verify and demo passed")
    return 0


def can_compile() -> bool:
    """Tell whether the native kernels can be built here."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return headers.is_file() and any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def check_files(wheel: Path, *, native: bool = False) -> None:
    """Check the wheel's name, size and file list; ``native`` for one with compiled kernels."""
    size_mb = wheel.stat().st_size / 1e6
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    top = {name.split("/")[0] for name in names}
    unexpected = {name for name in top if name != "refusion_edge" and not name.endswith(".dist-info")}
    unexpected |= {name for name in names if "/csrc/" in name}
    missing = [name for name in REQUIRED if name not in names]
    modules = ("refusion_edge/kernels/cpu/_native.", "refusion_edge/kernels/emulator/_emulator.")
    compiled = {name for name in names if name.startswith(modules)}
    right_kind = len(compiled) == (len(modules) if native else 0) and wheel.name.endswith("-py3-none-any.whl") != native
    if unexpected or missing or size_mb > MAX_MB or not right_kind:
        sys.exit(
            f"{wheel.name} has wrong contents: {size_mb:.1f} MB (at most {MAX_MB}), unexpected {sorted(unexpected)}, "
            f"missing {missing}, compiled {sorted(compiled)}"
        )
    print(f"{wheel.name}: {len(names)} files, {size_mb:.1f} MB")


def _run(command: list[str], folder: Path | None = None, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=folder, env=environment, check=False)
    if done.returncode:
        sys.exit(f"'{' '.join(command)}' failed with exit code {done.returncode}")


if __name__ == "__main__":
    raise SystemExit(main())
