"""``python -m refusion_edge.kernels.emulator``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the GPU kernels are compiled by Triton: pip install 'refusion-edge[triton]'")
pytest.importorskip("torch", reason="the operands come from a module that imports torch")

from refusion_edge.cuda.program_file import program_bytes
from refusion_edge.kernels.emulator import compiled
from refusion_edge.kernels.emulator.__main__ import main
from refusion_edge.kernels.emulator.compiled import is_built
from tests.fakes.programs import stored_program
from tests.kernels.emulator.launches import SMALL, fast_state
from tests.kernels.emulator.test_frame import changed_text, program_for

if not is_built():
    pytest.skip("the PTX emulator was not built", allow_module_level=True)

KERNELS = list(SMALL.schedule("float16").kernels)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.rfx"
    path.write_bytes(program_bytes(program_for(fast_state(), 87)))
    return path


def test_a_frame_is_reported_in_words_and_as_json(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(program), "--size", "9x17", "--json", "frame.json"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in KERNELS)
    document = json.loads(Path("frame.json").read_text())
    assert document["architecture"] == "sm_87"
    assert document["size_hw"] == [9, 17]
    assert not [finding for finding in document["findings"] if not finding["is_harmless"]]
    assert document["largest_difference_from_float64"] < 1.6e-2
    assert document["frame"]["launches"] == 3
    assert list(document["kernels"]) == KERNELS


@pytest.mark.parametrize(("kernel", "function"), [("stretch", "stretch_kernel"), ("fast_statistics", "fast_statistics_kernel")])
def test_a_fault_is_printed_and_decides_the_exit_status(
    program: Path, capsys: pytest.CaptureFixture[str], kernel: str, function: str
) -> None:
    # The self-test does not look at what `stretch` writes; without barriers in `fast_statistics`, it fails.
    faulty = changed_text(program_for(fast_state(), 87), kernel, "bar.sync \t0;", ";")
    program.write_bytes(program_bytes(faulty))
    assert main([str(program), "--size", "9x17", "--json", "-"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert ("error" in document) == (kernel == "fast_statistics")
    wrong = [finding for finding in document["findings"] if not finding["is_harmless"]]
    races = [finding for finding in wrong if finding["kind"].startswith("shared_")]
    # What the kernel spoils is found in those behind it, too.
    assert {finding["kernel"] for finding in races} == {function}
    assert all(finding["line"] and finding["instruction"] and finding["cause"] and finding["count"] for finding in races)


@pytest.mark.slow
def test_what_was_not_looked_for_is_said(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(program), "--size", "9x17", "--no-check"]) == 0
    assert "--no-check" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["--size", "9x"], 2, "9x"),
        (["--size", "dynamic"], 2, "--size"),
        (["--size", "7x9"], 2, "7"),
        (["--arch", "sm_90"], 3, "sm_90"),
        (["--arch", "sm_88"], 2, "sm_88"),
        (["--arch", "sm_87,sm_90"], 2, "--arch"),
        (["--size", "1024x1024", "--limit-s", "0.1"], 2, "--limit-s"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(
    program: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, named: str
) -> None:
    assert main([str(program), *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert named in captured.err


def test_files_that_are_no_programs_and_absent_parts_are_named(
    program: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["absent.rfx"]) == 4
    Path("text.rfx").write_text("a program")
    assert main(["text.rfx"]) == 4
    monkeypatch.setattr(compiled, "MODULE", "refusion_edge.kernels.emulator._never_built")
    assert main([str(program)]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "absent.rfx" in lines[0]
    assert "text.rfx" in lines[1]


def test_a_program_of_another_compiler_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("stored.rfx").write_bytes(stored_program())
    code = main(["stored.rfx"])
    (line,) = capsys.readouterr().err.splitlines()
    assert code in (3, 4), line


def test_an_unknown_instruction_is_refused(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = changed_text(program_for(fast_state(), 87), "fast_convolutions", "fma.rn.f32", "fma.rp.f32")
    program.write_bytes(program_bytes(unknown))
    assert main([str(program)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "fma.rp.f32" in line
