"""The NVIDIA software installed on a machine, read from files: no library is loaded and nothing is run.

On a Jetson the versions of JetPack, L4T, CUDA and TensorRT go together; elsewhere most of them are absent.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")

_L4T = re.compile(r"^# R(?P<major>\d+) \(release\), REVISION: (?P<minor>[\d.]+)", re.MULTILINE)
_DRIVER = re.compile(r"Kernel Module\s+(?:for \S+\s+)?(?P<version>\d+(?:\.\d+)+)")
# Debian packages with one version each; TensorRT's library has one per major version.
_JETPACK, _TENSORRT = "nvidia-jetpack", re.compile(r"libnvinfer\d+")


@dataclass(frozen=True, slots=True)
class Software:
    """Versions of NVIDIA's software; None for what cannot be determined.

    Attributes:
        jetpack: JetPack, such as ``6.2+b77``.
        l4t: Jetson Linux, such as ``36.4.3``.
        driver: The kernel's driver, such as ``540.4.0``.
        cuda: The installed toolkit, such as ``12.6.68``.
        tensorrt: The installed library of TensorRT, such as ``10.3.0.30``, whether or not Python can use it.
    """

    jetpack: str | None = None
    l4t: str | None = None
    driver: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None


def read_software(root: Path = ROOT) -> Software:
    """Read the versions installed on a system."""
    packages = dict(_packages(root))
    release = _L4T.search(_text(root / "etc/nv_tegra_release"))
    driver = _DRIVER.search(_text(root / "proc/driver/nvidia/version"))
    tensorrt = next((version for name, version in packages.items() if _TENSORRT.fullmatch(name)), None)
    return Software(
        jetpack=packages.get(_JETPACK),
        l4t=f"{release['major']}.{release['minor']}" if release else None,
        driver=driver["version"] if driver else None,
        cuda=_cuda(root),
        tensorrt=None if tensorrt is None else tensorrt.partition("-")[0],
    )


def _packages(root: Path) -> Iterator[tuple[str, str]]:
    """Name and version of every package of interest that Debian's package manager has installed."""
    for paragraph in _text(root / "var/lib/dpkg/status").split("\n\n"):
        name = re.match(r"Package: (\S+)", paragraph)
        if name is None or not (name[1] == _JETPACK or _TENSORRT.fullmatch(name[1])):
            continue
        version = re.search(r"^Version: (\S+)", paragraph, re.MULTILINE)
        if version is not None and "\nStatus: install ok installed" in paragraph:
            yield name[1], version[1]


def _cuda(root: Path) -> str | None:
    with contextlib.suppress(ValueError):
        document = json.loads(_text(root / "usr/local/cuda/version.json"))
        entry = document.get("cuda") if isinstance(document, Mapping) else None
        version = entry.get("version") if isinstance(entry, Mapping) else None
        return version if isinstance(version, str) else None
    return None


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""
