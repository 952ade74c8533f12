"""What is run on a lent machine with a GPU, where there is none: the table, the limit of the time, what each step leaves."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_lines, gpu_runs
from benchmarks.gpu_lines import INPUTS, Line, Step, lines
from benchmarks.gpu_runs import GRACE_S, LIMIT_S, choose, main, run, run_step, table, unused, words
from refusion_edge.errors import UsageError
from refusion_edge.kernels.gpu.schedule import make_schedule
from tests.conftest import ROOT

STEPS = [(line, step) for line in lines() for step in line.steps]


def python(code: str, **other: Any) -> Step:
    return Step("step", ("{python}", "-c", code), other.pop("expected_s", 1.0), **other)


def line_of(*steps: Step) -> Line:
    return Line("line", "an answer", steps)


def outcome(step: Step, left_s: float = 60 + GRACE_S) -> gpu_runs.Outcome:
    Path("folder").mkdir(exist_ok=True)
    return run_step(line_of(step), step, Path("folder").resolve(), left_s)


# ---- the table


def test_the_eight_lines_are_listed_with_their_commands_and_what_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    text = capsys.readouterr().out
    assert [line.name for line in lines()] == ["smoke", "meta", "train", "frame", "sweep", "tensorrt", "drivers", "sanitize"]
    for line in lines():
        assert f". {line.name}, about " in text
        assert line.expected_s + GRACE_S <= LIMIT_S, line.name
        assert len({step.name for step in line.steps}) == len(line.steps)
    assert "gpu_emulator record" in text
    assert "{" not in text


def test_every_kernel_with_strips_is_swept() -> None:
    (sweep,) = (line for line in lines() if line.name == "sweep")
    left = set(make_schedule().kernels) - {step.name for step in sweep.steps}
    assert left == {"encoder_mixing", "decoder_mixing", "to_plane", "stretch"}


def test_every_input_of_a_step_is_made_beforehand_or_by_a_step_before_it() -> None:
    made = {"ir_vis": "unpack", "meta-run": "warm-up", "frame-times.json": "times"} | {
        f"rtx-{precision}": f"build-{precision}" for precision in ("fp16", "int8")
    }
    for line, step in STEPS:
        before = [one.name for one in line.steps[: line.steps.index(step)]]
        for name in step.inputs:
            assert name in INPUTS or made[name] in before, (line.name, step.name, name)
        written = [word for word in step.command if word.startswith("{folder}/")]
        assert not step.run or f"{{folder}}/{step.run}" in written
        assert step.writes_json == ("--json" in step.command)


def module_words(command: tuple[str, ...]) -> tuple[str, list[str]]:
    """Module and options of a command, without a tool of the CUDA toolkit around it."""
    at = command.index("{python}")
    assert command[at + 1] == "-m"
    assert at == 0 or command[0] in ("compute-sanitizer", "ncu")
    return command[at + 2], [word.format(python="python", folder="folder", json="own.json") for word in command[at + 3 :]]


@pytest.mark.parametrize("module", sorted({module_words(step.command)[0] for _, step in STEPS}))
def test_every_module_exists(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


OPTIONS = sorted({(module, tuple(words)) for module, words in (module_words(step.command) for _, step in STEPS)})
# One command of each kind: a module, or a verb of the command line, with the same options.
OWN = list(
    {
        (module, words[0], *(word for word in words if word.startswith("-"))): (module, words)
        for module, words in OPTIONS
        if module.startswith(("benchmarks.", "refusion_edge"))
    }.values()
)
TESTS = [words for module, words in OPTIONS if module == "pytest"]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "words"), OWN, ids=lambda one: one if isinstance(one, str) else " ".join(one)[:60])
def test_every_command_knows_its_options(module: str, words: tuple[str, ...]) -> None:
    """Its values are read before the help is printed, and its options are in the help."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if "No module named" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", done.stdout))
    assert [word for word in words if word.startswith("-") and word not in known] == []


def test_the_parts_of_the_suite_exist() -> None:
    pytest.importorskip("torch", reason="the benchmark runs on torch")
    from benchmarks.gpu_suite import chosen_kernels, chosen_parts, chosen_sizes

    for module, options in OPTIONS:
        if module == "benchmarks.gpu_suite":
            given = dict(zip(options[::2], options[1::2], strict=True))
            assert chosen_parts(given["--parts"]) == given["--parts"].split(",")
            assert chosen_kernels(given.get("--kernels", "stem"))
            assert chosen_sizes(given.get("--sizes", "480x640"))


@pytest.mark.slow
@pytest.mark.parametrize("words", TESTS, ids=" ".join)
def test_the_tests_that_are_chosen_exist(words: tuple[str, ...]) -> None:
    pytest.importorskip("triton", reason="the GPU kernels are compiled by Triton: pip install 'refusion-edge[triton]'")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "test_device.py" in done.stdout


# ---- one step


def test_a_step_that_passes_keeps_what_it_printed_and_its_own_result() -> None:
    code = "import sys, json; json.dump({'ms': float('nan')}, open(sys.argv[1], 'w')); print('measured')"
    step = Step("step", ("{python}", "-c", code, "{json}"), 1, environment={"WHO": "me"})
    found = outcome(step)
    assert (found.state, found.exit_code, found.reason, found.printed) == ("passed", 0, "", "measured\n")
    assert found.result == {"ms": None}
    assert 0 < found.seconds < 60
    assert found.command[0] == sys.executable
    assert found.command[-1].endswith("folder/line-step.json")


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (python("import sys; print('no such thing'); sys.exit(7)"), "exit code 7: no such thing"),
        (python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"), "exit code -11: it printed nothing"),
        (Step("step", ("{python}", "-c", "pass", "{json}"), 1), "it did not write line-step.json"),
    ],
)
def test_a_step_that_fails_says_why(step: Step, reason: str) -> None:
    found = outcome(step)
    assert (found.state, found.reason) == ("failed", reason)


def test_an_old_result_is_not_taken_for_that_of_a_step_that_failed() -> None:
    Path("folder").mkdir()
    Path("folder/line-step.json").write_text("{}")
    found = outcome(Step("step", ("{python}", "-c", "pass", "{json}"), 1))
    assert (found.state, found.result) == ("failed", None)


@pytest.mark.parametrize(
    ("step", "word"),
    [
        (python("pass", modules=("no_such_module",)), "no_such_module"),
        (python("pass", programs=("no-such-program",)), "no-such-program"),
        (python("pass", inputs=("ir_vis.zip",)), "gpu_pack"),
        (python("pass", inputs=("something",)), "an earlier step"),
        (python("pass", expected_s=100), "100 s"),
        (python("pass", expected_s=100, run="run"), ""),
    ],
)
def test_a_step_that_lacks_something_or_does_not_fit_is_not_started(step: Step, word: str) -> None:
    left_s = GRACE_S if step.run else 60 + GRACE_S
    found = outcome(step, left_s)
    assert (found.state, found.exit_code) == ("skipped", None)
    assert word in found.reason


def test_a_step_out_of_time_is_ended_with_everything_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_runs, "GRACE_S", 0.4)
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    started = time.monotonic()
    found = outcome(python(code, expected_s=0.1), 1.0)
    assert (found.state, found.reason) == ("failed", "out of time")
    # Well before the minute that the child would sleep; it holds the output open until it is killed.
    assert time.monotonic() - started < 30


# Like training: writes a checkpoint when it is asked to end, and goes on from it.
TRAINS = """
import json, signal, sys, time
folder = sys.argv[1]
resumed = "--resume" in sys.argv
if resumed:
    sys.exit(0)
def stop(*_):
    open(folder + "/step-0000001.safetensors", "w").close()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
with open(folder + "/log.jsonl", "w") as log:
    for event in ({"event": "step", "step": 1}, {"event": "validation", "step": 1, "score": 0.5}):
        print(json.dumps(event), file=log)
time.sleep(60)
"""


def test_training_out_of_time_is_stopped_and_continued_by_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = gpu_runs._ends

    def once_it_trains(process: Any, limit_s: float) -> bool:
        # However busy the machine is, time is up when the run has begun.
        while limit_s == 2.0 and "validation" not in Path("folder/run/log.jsonl").read_text():
            time.sleep(0.01)
        return honest(process, 0.01 if limit_s == 2.0 else 60.0)

    step = Step("step", ("{python}", "-c", TRAINS, "{folder}/run"), 2.0, run="run")
    Path("folder/run").mkdir(parents=True)
    Path("folder/run/log.jsonl").touch()
    with monkeypatch.context() as patch:
        patch.setattr(gpu_runs, "_ends", once_it_trains)
        first = outcome(step)
    assert (first.state, first.exit_code) == ("stopped", 130)
    assert first.result == [{"event": "validation", "step": 1, "score": 0.5}]
    assert Path("folder/run/step-0000001.safetensors").exists()
    second = outcome(replace(step, expected_s=50))
    assert (second.state, second.command[-2:]) == ("passed", ("--resume", str(Path("folder/run").resolve())))


def test_training_is_started_without_resuming_what_is_not_there() -> None:
    step = Step("step", ("{python}", "train"), 1, run="run")
    assert words(step, Path("folder"), Path("own.json")) == (sys.executable, "train")


# ---- all of them


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lines of short steps, and a machine that seems to have a device."""
    known = (
        Line("one", "the first", (python("pass"), Step("bad", ("{python}", "-c", "raise SystemExit(3)"), 1))),
        Line(
            "two",
            "the second",
            (
                python("pass"),
                replace(python("pass", expected_s=1000), name="long"),
                replace(python("pass", modules=("no_such_module",)), name="lacking"),
            ),
        ),
    )
    monkeypatch.setattr(gpu_runs, "lines", lambda: known)
    monkeypatch.setattr(gpu_runs.cuda, "problem", lambda: None)
    monkeypatch.setattr(gpu_runs, "accelerator", lambda: "NVIDIA H200 NVL")
    monkeypatch.setattr(gpu_runs, "ROOT", Path.cwd())
    Path("benchmarks/results").mkdir(parents=True)


def test_the_answers_are_in_one_file_of_its_own_and_a_failure_decides_the_exit_code(
    short: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--all", "--folder", "folder", "--commit", "0123abc"]) == 1
    (path,) = Path("benchmarks/results").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-h200-nvl-all\.json", path.name)
    document = json.loads(path.read_text())
    assert (document["schema"], document["limit_s"]) == ("refusion-edge/gpu-runs/1", LIMIT_S)
    assert document["versions"]["commit"] == "0123abc"
    assert {"processor", "accelerator"} <= set(document["machine"])
    states = {line["name"]: [step["state"] for step in line["steps"]] for line in document["lines"]}
    assert states == {"one": ["passed", "failed"], "two": ["passed", "skipped", "skipped"]}
    assert set(document["lines"][0]["steps"][1]) == {
        "name", "command", "state", "reason", "exit_code", "seconds", "printed", "result",
    }  # fmt: skip
    text = capsys.readouterr().out
    assert table(document) in text
    assert re.search(r"\| one \| bad \| \*\*failed\*\* \| \d+ \| exit code 3: it printed nothing \|", text)
    assert main(["two/step", "--folder", "folder"]) == 0
    assert main(["two/step", "--folder", "folder"]) == 0
    names = sorted(path.name for path in Path("benchmarks/results").iterdir())
    assert [name.partition("nvl-")[2] for name in names] == ["all.json", "two-2.json", "two.json"]


def test_the_file_is_complete_after_every_step(short: None) -> None:
    chosen = choose(gpu_runs.lines(), ["one", "two/step"])
    counts = [
        [len(line["steps"]) for line in document["lines"]]
        for document in map(json.loads, map(json.dumps, run(chosen, Path("folder"), 60)))
    ]
    assert counts[:3] == [[1], [2], [2, 1]]


def test_the_limit_is_that_of_all_lines_together(short: None) -> None:
    (document,) = run(choose(gpu_runs.lines(), ["one/step"]), Path("folder"), GRACE_S)
    assert document["lines"][0]["steps"][0]["state"] == "skipped"


def test_an_earlier_file_is_never_replaced() -> None:
    assert unused(Path("run.json")) == Path("run.json")
    for name in ("run.json", "run-2.json"):
        Path(name).touch()
    assert unused(Path("run.json")) == Path("run-3.json")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["smoky"], 2),
        (["smoke/smoky"], 2),
        (["smoke", "--limit-s", "5"], 2),
        (["smoke", "--limit-s", "nan"], 2),
        (["smoke"], 3),
        (["smoke", "--json", "there/is/none.json"], 3),
    ],
)
def test_what_cannot_run_is_said_in_one_line(
    words: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_runs.cuda, "problem", lambda: "no device")
    assert main(words) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_lines_are_run_once_in_the_order_given() -> None:
    assert [line.name for line in choose(lines(), ["frame", "smoke", "frame"])] == ["frame", "smoke"]
    (line,) = choose(lines(), ["train/control"])
    assert [step.name for step in line.steps] == ["control"]
    with pytest.raises(UsageError):
        choose(lines(), ["train/"])


def test_the_table_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, benchmarks.gpu_runs as r; r.main(['--list']); assert 'torch' not in sys.modules"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert gpu_lines.__doc__
