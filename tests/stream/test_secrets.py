"""No password or token reaches a message, a report, a recording or a file that others can read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from refusion_edge.errors import RefusionError, RigError
from refusion_edge.rig.file import parse_rig, read_rig, write_rig
from refusion_edge.rig.model import Rig, RigAlignment, RigSource
from refusion_edge.stream.outputs.recording import Recorder
from refusion_edge.stream.run.session import StreamSession
from refusion_edge.stream.run.settings import StreamSettings
from refusion_edge.stream.uri import parse_output, parse_source
from tests.fakes.secret_names import SECRET
from tests.stream.conftest import camera

RunCli = Callable[..., tuple[int, str, str]]
IDENTITY = RigAlignment(None, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


@pytest.mark.parametrize("text", SECRET)
def test_a_source_shows_no_secret_when_it_fails_or_is_recorded(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Replaces the program under the system's Python, which may print the whole pipeline.
    monkeypatch.setattr("refusion_edge.stream.system_python.start", lambda *_words: None)
    monkeypatch.setattr("refusion_edge.stream.system_python.end", lambda _program: 1)
    monkeypatch.setattr("refusion_edge.stream.system_python.first_line", lambda *_words: f"no element in {text}")
    settings = StreamSettings(ir=text, vis=camera("vis"), outputs=(text,), rig=text, replay=text)
    with Recorder(Path("recording"), {"sources": settings.shown()}):
        pass
    seen = json.dumps(settings.shown()) + Path("recording/recording.json").read_text()
    for parse in (parse_source, parse_output):
        try:
            uri = parse(text)
        except RefusionError as error:
            seen += str(error)
        else:
            seen += str(uri) + repr(uri)
    session = StreamSession(StreamSettings(ir=text, vis=camera("vis"), outputs=("null://",)))
    with pytest.raises(RefusionError) as caught:
        session.run()
    assert "SeCr3t" not in seen + str(caught.value)


@pytest.mark.parametrize("text", SECRET[::7])
def test_the_command_line_shows_no_secret(run_cli: RunCli, text: str) -> None:
    for words in (("--ir", "nothing.mp4", "--vis", text, "--json", "-"), (text,), (f"--tokn={text}",), ("--policy", text)):
        code, out, err = run_cli("stream", *words)
        assert code != 0
        assert "SeCr3t" not in out + err


@pytest.mark.parametrize(
    "uri", ["[rtsp://u:SeCr3t@h/x]", "{password: SeCr3t}", "[[SeCr3t]]", "!SeCr3t x", "'rtsp://u:SeCr3t@h/x' x"]
)
def test_a_damaged_rig_shows_no_secret(uri: str) -> None:
    text = f"schema: refusion-edge/rig/1\nir: {{uri: {uri}, size_wh: [64, 48]}}\nvis: {{size_wh: [64, 48]}}\nalignments: []\n"
    with pytest.raises(RigError) as caught:
        parse_rig(text)
    assert "SeCr3t" not in str(caught.value)


@pytest.mark.parametrize(("uri", "mode"), [("rtsp://u:SeCr3t@h/x", 0o600), ("v4l2:///dev/video0", 0o644), (None, 0o644)])
def test_only_its_owner_reads_a_rig_with_a_password(uri: str | None, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refusion_edge.files._umask", lambda: 0o022)
    Path("rig.yaml").touch(0o666)
    rig = Rig(RigSource((64, 48), uri=uri), RigSource((64, 48)), (IDENTITY,))
    write_rig("rig.yaml", rig)
    assert Path("rig.yaml").stat().st_mode & 0o777 == mode
    assert read_rig("rig.yaml") == rig


def test_names_from_files_cannot_steer_the_terminal(run_cli: RunCli) -> None:
    code, _, err = run_cli("stream", "--ir", "\x1b[2Ja\nb\u202e.mp4", "--vis", camera("vis"), "-o", "null://")
    assert code == 4
    assert err.strip().isprintable()
