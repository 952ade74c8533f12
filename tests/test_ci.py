"""What ``.ci/run`` installs, and that a skip which is not on its list fails."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from refusion_edge.stream import system_python
from refusion_edge.stream.outputs import rtsp
from tests.conftest import ROOT

CI = ROOT / ".ci"
ALLOWED = [line for line in (CI / "allowed_skips.txt").read_text().splitlines() if line and not line.startswith("#")]
WANTED = [line for line in (CI / "packages.txt").read_text().splitlines() if line and not line.startswith("#")]

TESTS = """
import pytest

@pytest.mark.skipif(True, reason="needs an instruction set")
@pytest.mark.parametrize("number", range(7))
def test_marked(number):
    pass

@pytest.fixture
def resource():
    pytest.skip("needs a\\n  fixture's 'resource'")

def test_with_a_fixture(resource):
    pass

@pytest.mark.xfail(reason="known", strict=True)
def test_expected_to_fail():
    assert False

def test_passing():
    pass
"""
WHOLE_FILE = "import pytest\npytest.importorskip('no_such_module', reason='needs a module')\n"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pytest reports in two processes, as `make test-all` runs it."""
    folder = tmp_path_factory.mktemp("skips")
    (folder / "pytest.ini").touch()
    (folder / "test_some.py").write_text(TESTS)
    (folder / "test_file.py").write_text(WHOLE_FILE)
    words = ["-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider", "--junitxml=report.xml"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return folder / "report.xml"


def check(report: Path, *allowed: str) -> subprocess.CompletedProcess[str]:
    Path("allowed.txt").write_text("# why\n\n" + "".join(f"{line}\n" for line in allowed))
    words = [sys.executable, str(CI / "check_skips.py"), str(report), "allowed.txt"]
    return subprocess.run(words, capture_output=True, text=True, check=False)


EVERY = ("needs an? (instruction set|module)", "needs a fixture's 'resource'")


@pytest.mark.slow
def test_skips_on_the_list_pass_and_are_counted(report: Path) -> None:
    done = check(report, *EVERY)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(maxsplit=3) for line in done.stdout.splitlines()] == [
        ["skips:", "9", "of", "11 tests"],
        ["7", "line", "3", "needs an instruction set"],
        ["1", "line", "4", "needs a fixture's 'resource'"],
        ["1", "line", "3", "needs a module"],
    ]


@pytest.mark.slow
def test_lines_that_match_nothing_are_named_and_fail_nothing(report: Path) -> None:
    done = check(report, *EVERY, "needs the moon")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("1 lines of allowed.txt matched nothing in this run:\n        5: needs the moon\n")


@pytest.mark.parametrize(
    ("allowed", "named"),
    [
        (EVERY[1:], "test_file skipped for 'needs a module'"),
        (EVERY[:1], "test_some::test_with_a_fixture skipped for 'needs a fixture's 'resource''"),
        # A part of a reason is not the reason.
        (("needs an?", *EVERY[1:], "needs a module"), "test_some::test_marked[N] and 2 more skipped"),
        ((), "needs an instruction set"),
    ],
)
@pytest.mark.slow
def test_a_skip_that_is_not_on_the_list_fails(report: Path, allowed: tuple[str, ...], named: str) -> None:
    done = check(report, *allowed)
    assert done.returncode == 1
    assert named in re.sub(r"test_marked\[\d\] and", "test_marked[N] and", done.stderr)
    assert "NOT ALLOWED" in done.stdout
    assert all(line.startswith("skips: ") for line in done.stderr.splitlines())


@pytest.mark.parametrize(
    ("text", "allowed", "message"),
    [
        (None, ".", "No such file"),
        ("<testsuites>", ".", "no element found"),
        ("<testsuites/>", ".", "report.xml"),
        ("<testsuites/>", "needs (", "'needs (' in line 3 of allowed.txt"),
    ],
)
def test_a_report_that_shows_nothing_fails(text: str | None, allowed: str, message: str) -> None:
    if text is not None:
        Path("report.xml").write_text(text)
    done = check(Path("report.xml"), allowed)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("reason", "allowed"),
    [
        ("needs an NVIDIA device: there is no NVIDIA driver here (libcuda.so.1 cannot be loaded)", True),
        ("needs a processor with bf16 instructions", True),
        (
            "this machine lacks what these need: refusion-edge build --backend tensorrt; refusion-edge build --precision bf16",
            True,
        ),
        ("this machine lacks what these need: refusion-edge build --backend tensorrt-rtx", False),
        (
            "this machine lacks what these need: refusion-edge build --backend tensorrt; refusion-edge stream --ir csi://0",
            False,
        ),
        ("cuda-bindings is not installed", False),
        ("needs chromium", False),
        ("needs Xvfb, a display without a screen", False),
        ("needs cmake and a C++ compiler", False),
        ("needs GStreamer's Python bindings of the system", False),
        ("needs GStreamer's RTSP server from the system's packages", False),
    ],
)
def test_what_can_be_installed_may_not_be_skipped(reason: str, allowed: bool) -> None:
    assert any(re.fullmatch(line, reason) for line in ALLOWED) == allowed


# System packages


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system of our own: what root is, what is installed (``installed``), and what apt-get was asked for (``asked``)."""
    programs = tmp_path / "programs"
    programs.mkdir()
    here = shlex.quote(str(tmp_path))
    scripts = {
        "id": f"cat {here}/uid",
        "dpkg-query": f"sed 's/$/ installed/' {here}/installed",
        "apt-get": f'echo "$@" >> {here}/asked; [ ! -e {here}/broken ] || {{ echo "E: no network"; exit 100; }}',
    }
    for name, text in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(programs), os.environ["PATH"]]))
    (tmp_path / "uid").write_text("0\n")
    (tmp_path / "installed").write_text("".join(f"{name}\n" for name in WANTED if name not in ("xvfb", "qemu-user")))
    return tmp_path


def install() -> subprocess.CompletedProcess[str]:
    return subprocess.run([CI / "install_packages"], capture_output=True, text=True, check=False)


def test_root_installs_what_is_missing_and_nothing_else(system: Path) -> None:
    done = install()
    assert done.returncode == 0, done.stderr
    update, packages = (system / "asked").read_text().splitlines()
    assert update.endswith(" update")
    assert packages.endswith(" install --yes --no-install-recommends qemu-user xvfb")


def test_where_everything_is_there_nothing_is_asked_for(system: Path) -> None:
    (system / "installed").write_text("".join(f"{name}\n" for name in WANTED))
    done = install()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (system / "asked").exists()


def test_on_a_bare_machine_everything_is_installed(system: Path) -> None:
    (system / "installed").write_text("")
    assert install().returncode == 0
    assert (system / "asked").read_text().splitlines()[1].endswith(" ".join(WANTED))


def test_who_is_not_root_is_told_what_is_missing(system: Path) -> None:
    (system / "uid").write_text("1000\n")
    done = install()
    assert done.returncode == 1
    assert "qemu-user xvfb" in done.stderr
    assert "sudo .ci/install_packages" in done.stderr
    assert not (system / "asked").exists()


def test_what_apt_get_says_is_shown_where_it_fails(system: Path) -> None:
    (system / "broken").touch()
    done = install()
    assert done.returncode == 1
    first, last = done.stderr.splitlines()
    assert first == "E: no network"
    assert "qemu-user xvfb" in last


def test_what_the_messages_ask_to_install_is_installed() -> None:
    assert {*system_python.PACKAGES.split(), *rtsp._PACKAGES.split()} <= set(WANTED)


# Native kernels


@pytest.mark.parametrize(("native", "asked"), [("on", "true"), ("off", "false")])
def test_make_asks_for_the_native_kernels_or_leaves_them_out(native: str, asked: str) -> None:
    # A plain pip install would leave out kernels that do not compile without an error.
    words = ["make", "--dry-run", "--always-make", f"NATIVE={native}", "test"]
    planned = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installing = [line for line in planned.splitlines() if "--editable" in line]
    assert len(installing) == 2
    assert all(f"-Cwheel.cmake={asked}" in line for line in installing)


@pytest.mark.parametrize("python", ["no-such-python", "/bin/false"])
def test_an_interpreter_that_does_not_run_is_named_before_wheels_are_built(python: str, tmp_path: Path) -> None:
    words = [sys.executable, str(CI / "build_wheels.py"), "--output", str(tmp_path / "dist"), "--pythons", python]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert python in done.stderr
    assert not (tmp_path / "dist").exists()
