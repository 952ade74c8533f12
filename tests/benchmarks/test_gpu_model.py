"""The model of the frame time: what is counted in machine code, and the arithmetic of its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu_model
from benchmarks.gpu_model import (
    BOUNDS,
    CHIPS,
    SCHEMA,
    Chip,
    bounds_ms,
    count,
    frame_ms,
    launch_ms,
    layered_costs,
    main,
    row_costs,
)
from refusion_edge.arrays import State
from refusion_edge.cuda.program_file import program_bytes
from tests.fakes.programs import hollow_program

CODE = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E R2, [R2.64] ;
        /*0020*/              @P0  BRA 0x10 ;
        /*0030*/                   LDSM.16.M88.4 R4, [R8] ;
        /*0040*/                   HMMA.16816.F32 R4, R4, R6, RZ ;
        /*0050*/                   HGMMA.64x32x16.F32 R24, gdesc[UR8], RZ ;
        /*0060*/                   STG.E [R2.64], R4 ;
        /*0070*/             @!P1  BRA 0x30 ;
        /*0080*/                   EXIT ;
"""


def test_only_the_walk_over_rows_is_counted() -> None:
    assert row_costs(CODE, 16) == (5, 16 * 8 * 16 + 64 * 32 * 16 / 4)
    without_a_loop = CODE.replace("@!P1  BRA 0x30", "NOP")
    assert row_costs(without_a_loop, 3) == (3, (2048 + 8192) / 3)
    # The walk has 5 instructions and takes 20 turns for 16 rows; what lies around it is run once.
    around = len(gpu_model._INSTRUCTION.findall(CODE)) - 5
    assert layered_costs(CODE, 16, [20]) == ((around + 20 * 5) / 16, 20 * (16 * 8 * 16 + 64 * 32 * 16 / 4) / 16)
    with pytest.raises(ValueError, match="1 walks over rows instead of 2"):
        layered_costs(CODE, 16, [20, 18])


def test_a_launch_takes_the_longest_of_three_times() -> None:
    chip = Chip("chip", 87, 2, 1.0, 100, 10.0)
    assert launch_ms({"instructions": 80, "products": 1, "bytes": 1}, chip, 1_000_000) == pytest.approx(10.0)
    assert launch_ms({"instructions": 1, "products": 4000, "bytes": 1}, chip, 1_000_000) == pytest.approx(20.0)
    assert launch_ms({"instructions": 1, "products": 1, "bytes": 1000}, chip, 1_000_000) == pytest.approx(100.0)


# For a launch and for a pixel.
LINE = {
    "instructions": [80.0, 8.0], "ptx_instructions": [0.0, 10.0], "products": [0.0, 500.0], "wavefronts": [0.0, 2.0],
    "conflicts": [0.0, 0.0], "sectors": [0.0, 1.0], "sectors_once": [0.0, 0.5], "barriers": [0.0, 0.1], "ctas": [0.0, 0.01],
    "warps": 4,
}  # fmt: skip


def test_each_bound_is_its_count_by_its_rate() -> None:
    chip = Chip("chip", 87, 2, 1.0, 100, 10.0)
    document = {"counts": {"87": {"walk": LINE, "mixing": {**LINE, "ctas": [1.0, 0.0]}}}, "serial": ["mixing"]}
    bounds = bounds_ms(document, chip, "walk", 1000)
    assert tuple(bounds) == BOUNDS
    # Ten programs on two multiprocessors, a million clocks a millisecond each.
    expected = {"issue": 8080 / 4, "tensor": 5000, "shared": 2000, "L1": 250}
    assert {name: bounds[name] * 2e6 for name in expected} == pytest.approx(expected)
    # 16 kB at 10 GB/s.
    assert bounds["memory"] == pytest.approx(1.6e-3)
    assert (bounds["serial"], bounds["launch"]) == (0, 1.5e-3)
    alone = bounds_ms(document, chip, "mixing", 1000)
    # One multiprocessor; each of four warps waits four clocks for every one of its instructions.
    assert alone["shared"] == pytest.approx(2 * bounds["shared"])
    assert alone["serial"] * 1e6 == pytest.approx(8080 / 4 * 4)
    launches = {**document, "launches": ["walk", "mixing", "walk"]}
    assert frame_ms(launches, chip, 1000) == pytest.approx(2 * max(bounds.values()) + max(alone.values()))


def test_a_program_is_counted_and_its_table_printed_from_the_json(
    random_state: State, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_model, "dump", lambda binary, option: CODE if option == "-sass" else "")
    monkeypatch.setattr(gpu_model, "count_kernels", lambda program, _: dict.fromkeys(program.schedule.kernels, LINE))
    program = hollow_program(random_state, 87, 110)
    document = count(program)
    assert document["schema"] == SCHEMA
    assert document["costs"].keys() == {"87", "110"}
    assert [len(costs) for costs in document["costs"].values()] == [25, 25]
    stem, _, mixing = document["costs"]["87"][:3]
    tile = program.targets[87].binaries["stem"].tile
    assert stem["instructions"] == pytest.approx(5 * 2 * tile.warps / tile.columns)
    assert (mixing["kernel"], mixing["instructions"], mixing["bytes"]) == ("encoder_mixing", 0, 0)
    Path("program.rfx").write_bytes(program_bytes(program))
    assert main(["program.rfx", "--json", "model.json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(Path("model.json").read_text()) == document
    assert main(["--table", "model.json"]) == 0
    assert capsys.readouterr().out == printed
    assert printed.startswith("Model, not a measurement; counted in kernels of ")
    assert "| 2 x `encoder_statistics` |" in printed
    assert "`encoder_mixing`" in printed
    assert document["serial"] == ["encoder_mixing", "decoder_mixing"]
    assert [chip.name in printed for chip in CHIPS] == [True, True, True, True, False, False]


def test_a_run_on_a_device_is_compared_with_the_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"counts": {"90": {"stem": LINE}}, "serial": [], "launches": ["stem"]}
    Path("model.json").write_text(json.dumps(document))
    # Four instructions in each clock of each of 132 multiprocessors at 1.83 GHz, and a device that takes twice as long.
    bound_ms = (80 + 8 * 480 * 640) / 4 / (132 * 1.83e6)
    row = {"name": "stem", "size_hw": [480, 640], "ms": 2 * bound_ms}
    run = {"device": {"name": "NVIDIA H200"}, "parts": {"launches": {"rows": [row]}}}
    Path("run.json").write_text(json.dumps(run))
    assert main(["--table", "model.json", "--beside", "run.json"]) == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert "| `stem` | 640x480 |" in printed
    assert f"| {1e3 * bound_ms:.1f} | 50 % |" in printed
    Path("run.json").write_text(json.dumps({**run, "device": {"name": "NVIDIA A100-SXM4-40GB"}}))
    with pytest.raises(SystemExit):
        main(["--table", "model.json", "--beside", "run.json"])
    assert "A100" in capsys.readouterr().err


def test_it_wants_a_program_or_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "--table" in capsys.readouterr().err
