"""Versions of NVIDIA's software, from folders that look like those of a Jetson, a workstation, and a machine without any."""

from __future__ import annotations

from pathlib import Path

import pytest

from refusion_edge.selftest.software import Software, read_software

JETSON = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8\n",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release\nGCC: 11.4\n",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}',
    "var/lib/dpkg/status": (
        "Package: bash\nStatus: install ok installed\nVersion: 5.1\n\n"
        "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2+b77\n\n"
        "Package: libnvinfer8\nStatus: deinstall ok config-files\nVersion: 8.6.2-1\n\n"
        "Package: libnvinfer10\nStatus: install ok installed\nArchitecture: arm64\nVersion: 10.3.0.30-1+cuda12.5\n"
    ),
}


def below(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_jetson_tells_everything(tmp_path: Path) -> None:
    found = read_software(below(tmp_path, JETSON))
    assert found == Software("6.2+b77", "36.4.3", "540.4.0", "12.6.68", "10.3.0.30")


def test_a_workstation_has_a_driver(tmp_path: Path) -> None:
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23\n"
    assert read_software(below(tmp_path, {"proc/driver/nvidia/version": line})) == Software(driver="570.86.15")


@pytest.mark.parametrize("text", ["", "[]", '{"cuda": 12}', '{"cuda": {"version": 12.6}}', "{"])
def test_what_is_absent_or_garbled_is_not_guessed(tmp_path: Path, text: str) -> None:
    files = dict.fromkeys(JETSON, "garbage | \n\n\0") | {"usr/local/cuda/version.json": text}
    assert read_software(below(tmp_path, files)) == Software()
    assert read_software(tmp_path / "nothing") == Software()
