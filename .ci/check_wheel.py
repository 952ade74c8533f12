"""Build the wheel from a copy of the sources, check its contents, and try it in a clean environment from another folder.

First as on a machine without a C++ compiler, also as an editable installation: the native kernels are left out, which the first
command says, but a build that asks for them fails. Then, if there are a C++ compiler and the Python headers, with the native
kernels, which a plain installation has to contain.

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


# A compiler that compiles nothing.
_BROKEN = {"CXX": "/bin/false", "CC": "/bin/false"}


def main() -> int:
    """Run all checks; exit with a message at the first that fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source"
        copy_sources(source)
        venv.create(folder / "venv", with_pip=True)
        python = str(folder / "venv" / "bin" / "python")
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "--quiet"]
        _run([*pip, "install", "--upgrade", "pip>=25.1"])
        # A flat checkout in the working directory would be imported instead of the wheel.
        work = folder / "work"
        work.mkdir()
        environment = {**os.environ, "REFUSION_EDGE_CACHE": str(folder / "cache"), "PYTHONSAFEPATH": "1"}
        command = str(folder / "venv" / "bin" / "refusion-edge")

        # Another build folder, because CMake keeps the compiler that it found in one.
        without, elsewhere = {**os.environ, **_BROKEN}, f"-Cbuild-dir={folder / 'broken'}"
        wheel = build_wheel(pip, source, folder / "pure", without, elsewhere)
        check_files(wheel)
        _run([*pip, "install", str(wheel)])
        _run([python, "-c", "import importlib.util as u; assert u.find_spec('torch') is None, 'torch was installed'"], work)
        says_native(command, work, environment, usable=False)
        _run([command, "build", "--task", "ir_vis", "--precision", "fp16", "-o", "bundle"], work, environment)
        _run([command, "verify", "bundle"], work, environment)
        _run([command, "demo", "--bundle", "bundle", "-o", "demo"], work, environment)
        if not (work / "demo" / "montage.png").is_file():
            sys.exit("demo wrote no montage")
        _run([*pip, "install", "--no-deps", "--editable", str(source), elsewhere], environment=without)
        says_native(command, work, environment, usable=False)
        asked = wheel_command(pip, source, folder / "asked", elsewhere, "-Cwheel.cmake=true")
        if subprocess.run(asked, env=without, capture_output=True, check=False).returncode == 0:
            sys.exit("-Cwheel.cmake=true was satisfied without a compiler")

        if can_compile():
            wheel = build_wheel(pip, source, folder / "native")
            check_files(wheel, native=True)
            _run([*pip, "install", "--force-reinstall", "--no-deps", str(wheel)])
            says_native(command, work, environment, usable=True)
            _run([command, "build", "--precision", "fp32", "--backend", "native", "-o", "native"], work, environment)
            _run([command, "verify", "native"], work, environment)
        else:
            print("wheel: without a C++ compiler and the Python headers, the wheel with the native kernels was not checked")
    print("wheel: files, clean installation with and without a compiler, build, verify and demo passed")
    return 0


def copy_sources(folder: Path) -> None:
    """Copy what git knows or would take, without what was compiled in this folder."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"], capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if os.path.lexists(ROOT / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)


def wheel_command(pip: list[str], source: Path, folder: Path, *settings: str) -> list[str]:
    """The command that builds the wheel of a source folder."""
    return [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(source), *settings]


def build_wheel(pip: list[str], source: Path, folder: Path, environment: dict[str, str] | None = None, *settings: str) -> Path:
    """Build the wheel of a source folder."""
    _run(wheel_command(pip, source, folder, *settings), environment=environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def says_native(command: str, folder: Path, environment: dict[str, str], *, usable: bool) -> None:
    """Require that the installed program says whether it has the native kernels and, without, how to get them."""
    images = ROOT / "refusion_edge/images/samples/ir_vis"
    fuse = ["fuse", str(images / "ir/street.png"), str(images / "vis/street.png"), "-o", "fused.png", "--overwrite"]
    chosen = "auto chose native" if usable else "native (its C++ module did not compile, or was left out"
    wanted = {"--version": "" if usable else "without native: ", "doctor": "" if usable else "wheel.cmake=true", "fuse": chosen}
    for words in (["--version"], ["doctor"], fuse):
        done = subprocess.run([command, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
        said = " ".join(done.stdout.split())
        if done.returncode or wanted[words[0]] not in said or (usable and "without native" in said):
            sys.exit(f"'{' '.join(words)}' does not say whether native is usable ({usable}): {said or done.stderr}")


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
