"""The bounded reader of files of others, and the one owner of output targets."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from refusion_edge.errors import InputError, OutputError, RigError
from refusion_edge.files import read_file, require_writable, write_atomically
from tests.conftest import ROOT, files_below, one_sentence
from tests.raising import raises

WEIGHTS = ROOT / "refusion_edge/network/weights"


def special(kind: str) -> Path:
    """Make a file of a kind that has no end, or none yet."""
    path = Path(f"special.{kind}")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # endless zeros
        except PermissionError:
            pytest.skip("only root makes devices")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.mkdir()
    return path


def reading_thread(path: Path) -> tuple[threading.Thread, list[bytes]]:
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(path.read_bytes()))
    thread.start()
    return thread, got


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
def test_only_regular_files_are_read_and_nothing_is_waited_for(kind: str) -> None:
    path = special(kind)
    with pytest.raises(RigError) as caught:
        read_file(path, kind="rig file", most_bytes=100, error=RigError)
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize("name", ["missing", "a\0b", "x" * 5000, "file/below"])
def test_a_name_that_leads_to_nothing_is_an_error_of_the_asked_type(name: str) -> None:
    Path("file").write_text("")
    with pytest.raises(RigError) as caught:
        read_file(Path(name), kind="rig file", most_bytes=100, error=RigError)
    assert one_sentence(str(caught.value).replace("\0", ""))


def test_a_huge_file_is_refused_without_reading_it() -> None:
    with Path("sparse").open("wb") as file:
        file.truncate(16 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError):
        read_file(Path("sparse"), kind="image", most_bytes=1 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_the_limit_itself_is_read_and_links_are_followed() -> None:
    Path("ten").write_bytes(b"0123456789")
    Path("link").symlink_to("ten")
    assert read_file(Path("link"), kind="image", most_bytes=10) == b"0123456789"
    with pytest.raises(InputError):
        read_file(Path("link"), kind="image", most_bytes=9)


def test_a_pipe_is_written_to_and_stays_one() -> None:
    path = special("pipe")
    require_writable(path)
    thread, got = reading_thread(path)
    write_atomically(path, b"result")
    thread.join(10)
    assert got == [b"result"]
    assert path.is_fifo()
    assert files_below(Path()) == [path.name]


def test_a_device_is_written_to_and_stays_one() -> None:
    path = Path("null")
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    require_writable(path)
    write_atomically(path, b"result")
    assert path.is_char_device()
    assert files_below(Path()) == ["null"]


def test_a_full_device_is_an_error() -> None:
    with pytest.raises(OutputError) as caught:
        write_atomically(Path("/dev/full"), b"result")
    assert one_sentence(str(caught.value))
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.mark.parametrize("kind", ["socket", "folder"])
def test_what_cannot_hold_a_result_is_refused_and_kept(kind: str) -> None:
    path = special(kind)
    with pytest.raises(OutputError) as caught:
        write_atomically(path, b"result")
    assert one_sentence(str(caught.value))
    assert files_below(Path()) == [path.name]


def test_a_link_stays_a_link_and_its_file_is_replaced_whole() -> None:
    Path("real").mkdir()
    Path("real/file").write_bytes(b"old")
    Path("link").symlink_to("middle")
    Path("middle").symlink_to("real/file")
    with Path("real/file").open("rb") as held:
        require_writable(Path("link"))
        write_atomically(Path("link"), b"new")
        assert held.read() == b"old", "it was written in place"
    assert Path("link").is_symlink()
    assert Path("middle").is_symlink()
    assert Path("real/file").read_bytes() == b"new"
    assert files_below(Path("real")) == ["file"]


def test_a_link_to_nothing_makes_its_file() -> None:
    Path("link").symlink_to("made/file")
    write_atomically(Path("link"), b"new")
    assert Path("made/file").read_bytes() == b"new"


def test_links_in_a_circle_are_refused() -> None:
    Path("a").symlink_to("b")
    Path("b").symlink_to("a")
    for act in (lambda path: write_atomically(path, b"x"), require_writable):
        with pytest.raises(OutputError):
            act(Path("a"))


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_a_replaced_file_keeps_its_mode(mode: int) -> None:
    path = Path("file")
    path.write_bytes(b"old")
    path.chmod(mode)
    write_atomically(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_follows_the_mask() -> None:
    before = os.umask(0o027)
    try:
        write_atomically(Path("file"), b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path("file").stat().st_mode) == 0o640


def test_the_mask_is_not_changed_to_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # It belongs to all threads: two that set and restored it at the same time could leave it empty.
    monkeypatch.setattr(os, "umask", mock.Mock(side_effect=AssertionError))
    write_atomically(Path("file"), b"new")


@pytest.mark.parametrize("replaced", [True, False])
def test_data_is_on_the_disk_before_it_has_its_name(monkeypatch: pytest.MonkeyPatch, replaced: bool) -> None:
    named: list[bool] = []
    fsync = os.fsync

    def note(number: int) -> None:
        named.append(Path("file").exists() and Path("file").read_bytes() == b"new")
        fsync(number)

    monkeypatch.setattr(os, "fsync", note)
    if replaced:
        Path("file").write_bytes(b"old")
    write_atomically(Path("file"), b"new")
    assert named == [False, True]  # the second time, its folder


def test_an_error_that_comes_late_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_bytes(b"old")

    def over_quota(_number: int) -> None:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", over_quota)
    with pytest.raises(OutputError):
        write_atomically(Path("file"), b"new")
    assert Path("file").read_bytes() == b"old"
    assert files_below(Path()) == ["file"]


def run_command(*words: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, capture_output=True, timeout=120, check=False, env=environment, **options)  # type: ignore[call-overload, no-any-return]


def test_standard_output_by_its_name() -> None:
    words = ("-m", "refusion_edge", "inspect", "medical.safetensors", "--json", "/dev/stdout")
    found = run_command(sys.executable, *words, cwd=WEIGHTS)
    assert (found.returncode, found.stderr) == (0, b"")
    assert found.stdout.startswith(b"{")


def test_standard_output_that_is_a_file_is_continued() -> None:
    """Replacing the file would lose what the shell and others have written to it, and still write."""
    script = (
        "import pathlib, sys; from refusion_edge.files import write_atomically; print('before');"
        "write_atomically(pathlib.Path('/dev/stdout'), b'result\\n'); print('after')"
    )
    with Path("log").open("wb") as log:
        log.write(b"first\n")
        log.flush()
        subprocess.run([sys.executable, "-c", script], stdout=log, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert Path("log").read_text().split() == ["first", "before", "result", "after"]


def test_process_substitution_of_a_shell(run_shell: Callable[[str], subprocess.CompletedProcess[bytes]]) -> None:
    found = run_shell("inspect medical.safetensors --json >(cat >copy.json) >/dev/null && wait $! && test -s copy.json")
    assert (found.returncode, found.stderr) == (0, b"")
    assert Path("copy.json").read_bytes().startswith(b"{")


@pytest.fixture
def run_shell() -> Callable[[str], subprocess.CompletedProcess[bytes]]:
    """Run a command line of the program in a shell with process substitution."""

    def run(line: str) -> subprocess.CompletedProcess[bytes]:
        Path("medical.safetensors").write_bytes((WEIGHTS / "medical.safetensors").read_bytes())
        return run_command("bash", "-c", f"{sys.executable} -m refusion_edge {line}")

    return run


def test_every_verb_writes_to_devices_in_place(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    for target in ("x.safetensors", "x.png"):
        os.mkfifo(target)
    thread, got = reading_thread(Path("x.safetensors"))
    code, _, err = run_cli("export", "--task", "medical", "-o", "x.safetensors")
    thread.join(10)
    assert (code, err) == (0, "")
    assert len(got[0]) > 100_000
    assert Path("x.safetensors").is_fifo()

    from refusion_edge.images.samples import sample_paths

    pair = sample_paths("ir_vis")[0]
    thread, got = reading_thread(Path("x.png"))
    code, _, err = run_cli("fuse", "--task", "ir_vis", pair.a, pair.b, "-o", "x.png")
    thread.join(10)
    assert code == 0, err
    assert got[0].startswith(b"\x89PNG")
    assert Path("x.png").is_fifo()


def test_reading_takes_no_more_memory_than_the_file_needs(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"abc")
    tracemalloc.start()
    try:
        assert read_file(tmp_path / "small", kind="file", most_bytes=1 << 30) == b"abc"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_whose_size_is_not_known_is_read_whole() -> None:
    path = Path("/proc/self/status")
    if not path.exists():
        pytest.skip("needs /proc")
    assert path.stat().st_size == 0
    assert b"\nPid:" in read_file(path, kind="file", most_bytes=1 << 20)
    with raises(InputError, "/proc/self/status"):
        read_file(path, kind="file", most_bytes=100)


# Kills itself when the data is written, before the file gets its name.
KILLED = """
import os, signal
from pathlib import Path
from refusion_edge.files import write_atomically
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path("folder/file"), bytes(1000))
"""


@pytest.fixture
def unnamed_files(tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY))
    except OSError:
        pytest.skip("needs a file system with files without names")


@pytest.mark.usefixtures("unnamed_files")
def test_a_process_that_is_killed_while_it_writes_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not list((tmp_path / "folder").iterdir())


@pytest.mark.usefixtures("unnamed_files")
def test_a_file_that_replaces_none_never_has_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = mock.Mock(side_effect=os.link)
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(Path, "replace", mock.Mock(side_effect=AssertionError))
    write_atomically(tmp_path / "file", b"data")
    assert (tmp_path / "file").read_bytes() == b"data"
    assert [call.args[1] for call in link.call_args_list] == [tmp_path / "file"]


@pytest.mark.parametrize("lacking", ["files without names", "their links"])
def test_files_are_written_where_they_cannot_be_without_a_name(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    if lacking == "their links":
        monkeypatch.setattr(os, "link", mock.Mock(side_effect=OSError(errno.ENOENT, "no /proc")))
    else:
        monkeypatch.delattr(os, "O_TMPFILE")
    for data in (b"one", b"other"):
        write_atomically(Path("folder/file"), data)
        assert [(path.name, path.read_bytes()) for path in Path("folder").iterdir()] == [("file", data)]


# Writes with the last descriptor that it may open, which is free again afterward.
ONE_DESCRIPTOR = """
import os, resource
from pathlib import Path
from refusion_edge.files import write_atomically
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    os.close(taken.pop())
write_atomically(Path("file"), b"data")
os.close(os.open(os.devnull, os.O_RDONLY))
"""


def test_one_descriptor_is_enough_to_write(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", ONE_DESCRIPTOR], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "file").read_bytes() == b"data"
