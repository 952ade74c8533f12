"""An aarch64 Python of Debian that runs in an emulator, from packages that are unpacked without being installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Beside Python, what the wheels of NumPy and OpenCV take from the system.
_PACKAGES = ("python3", "libstdc++6", "libgl1", "libglib2.0-0")


@dataclass(frozen=True)
class EmulatedPython:
    """Such a Python.

    Attributes:
        root: Folder that the packages are unpacked in.
        version: Its version, such as ``311``.
    """

    root: Path
    version: str

    @property
    def command(self) -> list[str]:
        """Words before the arguments of Python."""
        return ["qemu-aarch64", "-L", str(self.root), str(self.root / "usr/bin/python3")]


def fetch(folder: Path) -> EmulatedPython | None:
    """Download and unpack; None on a system without apt-get or the emulator."""
    if shutil.which("apt-get") is None or shutil.which("qemu-aarch64") is None:
        return None
    apt, root = folder / "apt", folder / "root"
    for part in ("state/lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()  # nothing is installed there
    root.mkdir()
    places = {"State": apt / "state", "State::status": apt / "status", "Cache": apt / "cache"}
    settings = {"APT::Architecture": "arm64", "APT::Architectures::": "arm64", "APT::Sandbox::User": "root"}
    settings |= {f"Dir::{name}": str(path) for name, path in places.items()}
    get = ["apt-get", "-qq", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    _run([*get, "update"])
    _run([*get, "install", "--yes", "--no-install-recommends", "--download-only", *_PACKAGES])
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(package), str(root)])
    (python,) = (root / "usr/bin").glob("python3.*[0-9]")
    return EmulatedPython(root, python.name.removeprefix("python").replace(".", ""))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(f"'{' '.join(command)}' failed with exit code {done.returncode}")
