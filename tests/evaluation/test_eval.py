"""The verb ``eval``: tables, files, and what it says of bad input."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.images.io import read_image, write_image
from refusion_edge.metrics import METRICS, metrics_of, score
from refusion_edge.tasks import TASKS
from tests.conftest import one_sentence
from tests.evaluation.conftest import NAMES

Cli = Callable[..., tuple[int, str, str]]
SOURCES = ("--ir", "ir", "--vis", "vis", "--jobs", 1, "--no-trivial")


def refuse_constants(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def read_json(path: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=refuse_constants)
    return document


def test_one_method_gives_a_table_with_its_convention(dataset: Path, run_cli: Cli) -> None:
    code, out, err = run_cli("eval", *SOURCES, "--fused", "good")
    assert (code, err) == (0, "")
    assert "convention evaluator" in out
    assert all(f"{metric.name} " in out for metric in metrics_of("evaluator"))
    assert "mean rank" not in out


def test_several_methods_are_ranked_and_compared(dataset: Path, run_cli: Cli) -> None:
    code, out, _ = run_cli("eval", *SOURCES, "--fused", "noisy", "--fused", "mean=good", "--metrics", "CC,MSE,vifb:SSIM")
    assert code == 0
    assert out.index("convention evaluator") < out.index("convention vifb")
    assert re.search(r"mean +1\.00", out)
    assert re.search(r"noisy +2\.00", out)
    assert "mean minus the others" in out
    assert re.search(r"MSE \(evaluator\) +-\d", out)


def test_json_holds_every_number_with_its_convention(dataset: Path, run_cli: Cli) -> None:
    names = "EN,vifb:EN,Nabf"
    code, out, _ = run_cli("eval", *SOURCES, "--fused", "good", "--fused", "noisy", "--metrics", names, "--json", "r.json")
    assert code == 0
    assert "wrote r.json" in out
    document = read_json("r.json")
    assert document["schema"] == "refusion-edge/evaluation/1"
    assert document["images"] == list(NAMES)
    assert len(document["values"]) == 2 * 5 * 3
    for part in ("metrics", "summary", "differences", "values"):
        assert all({"metric", "convention"} <= set(entry) for entry in document[part])
    first = document["values"][0]
    entropy = METRICS["EN"]["evaluator"]
    expected = score(*(read_image(path) for path in ("ir/01.png", "vis/01.png", "good/01.png")), [entropy])[entropy]
    assert first == {"image": "01", "method": "good", "metric": "EN", "convention": "evaluator", "value": expected}
    (difference,) = (entry for entry in document["differences"] if entry["metric"] == "Nabf")
    assert difference["low"] <= difference["mean"] <= difference["high"] < 0
    assert document["misregistration"] == []


def test_json_on_standard_output_is_nothing_but_json(dataset: Path, run_cli: Cli) -> None:
    code, out, _ = run_cli("eval", *SOURCES, "--fused", "good", "--json", "-")
    assert code == 0
    assert json.loads(out)["methods"] == ["good"]


def test_csv_has_one_row_for_each_image_and_method(dataset: Path, run_cli: Cli) -> None:
    assert run_cli("eval", *SOURCES, "--fused", "good", "--fused", "black", "--csv", "out/r.csv")[0] == 0
    rows = list(csv.DictReader(Path("out/r.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["image"], row["method"]) for row in rows][:6] == [*((name, "good") for name in NAMES), ("01", "black")]
    assert float(rows[0]["Qabf (evaluator)"]) > 0
    assert rows[5]["CC (evaluator)"] == "undefined"


def test_a_black_result_is_undefined_and_never_nan(dataset: Path, run_cli: Cli) -> None:
    everything = "evaluator,vifb,survey,sequence"
    methods = ("--fused", "black", "--fused", "good")
    code, out, _ = run_cli(
        "eval", *SOURCES, *methods, "--convention", everything, "--json", "r.json", "--html", "r.html"
    )  # fmt: skip
    assert code == 0
    page = Path("r.html").read_text(encoding="utf-8")
    for text in (out, re.sub(r"data:image[^\"]*", "", page)):
        assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)
        assert "undefined" in text
    of_metric = [
        entry for entry in read_json("r.json")["summary"] if (entry["metric"], entry["convention"]) == ("CC", "evaluator")
    ]
    (entry,) = (entry for entry in of_metric if entry["method"] == "black")
    assert (entry["mean"], entry["undefined"], entry["rank"]) == (None, 5, len(of_metric))


def test_processes_give_what_one_process_gives(dataset: Path, run_cli: Cli) -> None:
    for jobs in (1, 2):
        arguments = ("--ir", "ir", "--vis", "vis", "--fused", "good", "--jobs", jobs, "--json", f"{jobs}.json")
        assert run_cli("eval", *arguments)[0] == 0
    assert read_json("1.json") == read_json("2.json")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_damaged_file_is_named_whoever_reads_it(dataset: Path, run_cli: Cli, jobs: int) -> None:
    Path("good/04.png").write_bytes(Path("good/04.png").read_bytes()[:200])
    code, out, err = run_cli("eval", "--ir", "ir", "--vis", "vis", "--fused", "good", "--jobs", jobs, "--csv", "r.csv")
    assert (code, out) == (4, "")
    assert "04.png" in err
    assert one_sentence(err)
    assert not Path("r.csv").exists()


def test_a_result_of_another_size_is_named(dataset: Path, run_cli: Cli) -> None:
    write_image("good/02.png", np.zeros((20, 30), np.uint8))
    code, _, err = run_cli("eval", *SOURCES, "--fused", "good")
    assert code == 4
    assert all(text in err for text in ("02", "20x30", "48x56"))
    assert one_sentence(err)


def test_missing_counterparts_are_listed_or_left_out(dataset: Path, run_cli: Cli) -> None:
    Path("good/03.png").unlink()
    code, _, err = run_cli("eval", *SOURCES, "--fused", "good")
    assert code == 4
    assert "good/03" in err
    assert one_sentence(err)
    code, out, _ = run_cli("eval", *SOURCES, "--fused", "good", "--partial")
    assert code == 0
    assert "left out, no counterpart: good/03" in out
    assert "4 images" in out


def test_16_bit_and_color_results_score_like_their_8_bit_gray(dataset: Path, run_cli: Cli) -> None:
    for name in NAMES:
        gray = read_image(f"good/{name}.png")
        write_image(f"deep/{name}.png", gray.astype(np.uint16) * 257)
        write_image(f"color/{name}.png", np.repeat(gray[..., None], 3, axis=2))
    arguments = [word for name in ("good", "deep", "color") for word in ("--fused", name)]
    assert run_cli("eval", *SOURCES, *arguments, "--convention", "evaluator,vifb", "--json", "r.json")[0] == 0
    by_method: dict[str, list[float]] = {}
    for entry in read_json("r.json")["summary"]:
        by_method.setdefault(entry["method"], []).append(entry["mean"])
    assert by_method["deep"] == pytest.approx(by_method["good"])
    assert by_method["color"] == pytest.approx(by_method["good"])


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--metrics", "SSIN"), "'SSIM'"),
        (("--metrics", "EN,"), "metric ''"),
        (("--convention", "vifp"), "'vifb'"),
        (("--fused", "good"), "'good'"),
        (("--shifts", "1,x"), "'1,x'"),
        (("--shifts", "30"), "30"),
    ],
)
def test_usage_errors_say_what_to_do(dataset: Path, run_cli: Cli, words: tuple[str, ...], hint: str) -> None:
    code, _, err = run_cli("eval", *SOURCES, "--fused", "good", *words)
    assert code == 2
    assert hint in err
    assert one_sentence(err)


@pytest.mark.parametrize(
    ("words", "code"),
    [(("--ir", "ir"), 2), (("--ir", "ir", "--vis", "vis"), 2), (("--ir", "none", "--vis", "vis", "--fused", "good"), 4)],
)
def test_incomplete_calls_are_refused(dataset: Path, run_cli: Cli, words: tuple[str, ...], code: int) -> None:
    found, _, err = run_cli("eval", *words)
    assert found == code
    assert one_sentence(err)


def test_list_shows_every_metric_without_any_folder(run_cli: Cli) -> None:
    code, out, _ = run_cli("eval", "--list")
    assert code == 0
    for name, by_convention in METRICS.items():
        for convention in by_convention:
            assert re.search(rf"^{re.escape(name)} +{convention} ", out, re.MULTILINE)


def test_a_sequence_gives_flicker(dataset: Path, run_cli: Cli) -> None:
    still = read_image("ir/01.png")
    for index, name in enumerate(NAMES):
        write_image(f"ir/{name}.png", still)
        write_image(f"vis/{name}.png", still)
        write_image(f"jumps/{name}.png", np.full_like(still, 100 + 10 * (index % 2)))
    assert run_cli("eval", *SOURCES, "--fused", "jumps", "--metrics", "Flicker", "--json", "r.json")[0] == 0
    (entry,) = read_json("r.json")["summary"]
    assert (entry["mean"], entry["images"], entry["undefined"], entry["convention"]) == (10, 4, 1, "sequence")


def test_a_sequence_is_in_the_order_of_its_numbers(run_cli: Cli) -> None:
    still = np.tile(np.arange(64, dtype=np.uint8), (48, 1))
    for number in range(12):
        for folder, image in (("ir", still), ("vis", still), ("rising", np.full_like(still, 100 + number))):
            write_image(f"{folder}/frame_{number}.png", image)
    words = ("--ir", "ir", "--vis", "vis", "--fused", "rising", "--metrics", "Flicker", "--no-trivial", "--json", "r.json")
    assert run_cli("eval", *words)[0] == 0
    (entry,) = read_json("r.json")["summary"]
    # One level from frame to frame; in the order of the text (0, 1, 10, 11, 2, ...) it is 2.8.
    assert entry["mean"] == 1


def test_shifts_add_a_sweep(dataset: Path, run_cli: Cli) -> None:
    code, out, _ = run_cli(
        "eval", *SOURCES, "--fused", "good", "--metrics", "CC", "--shifts", "0,2,5", "--json", "r.json", "--html", "r.html"
    )  # fmt: skip
    assert code == 0
    assert "means against shift of source a in pixels" in out
    swept = read_json("r.json")["misregistration"]
    assert [entry["offset_px"] for entry in swept] == [0, 2, 5]
    assert swept[0]["mean"] > swept[1]["mean"] > swept[2]["mean"]
    assert "Misregistration" in Path("r.html").read_text(encoding="utf-8")


def test_a_bundle_fuses_first(dataset: Path, run_cli: Cli) -> None:
    for name in NAMES[1:]:
        for folder, suffix in (("ir", "png"), ("vis", "png"), ("good", "png")):
            Path(folder, f"{name}.{suffix}").unlink()
    code, _, _ = run_cli(
        "eval", *SOURCES, "--fused", "good", "--bundle", "ours=ir_vis", "--metrics", "EN,vifb:Qabf", "--shifts", "0,2",
        "--json", "r.json", "--html", "r.html",
    )  # fmt: skip
    assert code == 0
    document = read_json("r.json")
    assert document["methods"] == ["good", "ours"]
    assert document["task"] == "ir_vis" == TASKS["ir_vis"].name
    assert len(document["misregistration"]) == 2 * 2 * 2
    # Gray conventions read the luma, VIFB the image in color.
    import refusion_edge

    a, b = read_image("ir/01.png"), read_image("vis/01.png")
    with refusion_edge.load("ir_vis") as fuser:
        luma, color = fuser.fuse(a, b, color=False), fuser.fuse(a, b)
    values = {entry["metric"]: entry["value"] for entry in document["values"] if entry["method"] == "ours"}
    entropy, edges = METRICS["EN"]["evaluator"], METRICS["Qabf"]["vifb"]
    assert values["EN"] == score(a, b, luma, [entropy])[entropy]
    assert values["Qabf"] == score(a, b, color, [edges])[edges]


class _Links(HTMLParser):
    """Collects what a page would load, and the images inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]


def test_the_page_stands_alone_and_shows_everything(dataset: Path, run_cli: Cli) -> None:
    code, _, _ = run_cli("eval", *SOURCES, "--fused", "good", "--fused", "a<b>=noisy", "--html", "r.html")
    assert code == 0
    page = Path("r.html").read_text(encoding="utf-8")
    links = _Links()
    links.feed(page)
    assert links.sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in links.sources)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "a&lt;b&gt;" in page
    assert "a<b>" not in page
    assert page.count("<svg") == 13
    assert all(text in page for text in ('class="rank1"', "Worst", "Best"))
    assert all(f"<td>{name}</td>" in page for name in NAMES)
    import base64

    montage = cv2.imdecode(np.frombuffer(base64.b64decode(links.sources[0].partition(",")[2]), np.uint8), cv2.IMREAD_COLOR)
    assert montage.shape == (200, 3 * round(56 * 200 / 48) + 12, 3)


def test_the_page_needs_jinja_and_says_so_before_the_work(dataset: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, _, err = run_cli("eval", *SOURCES, "--fused", "good", "--html", "r.html")
    assert code == 3
    assert "refusion-edge[eval]" in err


def test_one_image_is_enough(picture: Callable[..., Array], run_cli: Cli) -> None:
    for name in ("a", "b", "c", "d"):
        write_image(f"{name}.png", picture(48, 50))
    code, out, _ = run_cli(
        "eval", "--a", "a.png", "--b", "b.png", "--fused", "c.png", "--fused", "d.png", "--html", "r.html", "--json", "r.json"
    )  # fmt: skip
    assert code == 0
    assert read_json("r.json")["differences"][0]["low"] is None
    assert "1 images" not in out


def test_two_rules_without_parameters_stand_beside_every_method(dataset: Path, run_cli: Cli) -> None:
    code, out, err = run_cli("eval", *SOURCES[:-1], "--fused", "good", "--metrics", "SD", "--json", "r.json")
    assert code == 0, err
    assert read_json("r.json")["methods"] == ["good", "max(a, b)", "average"]
    assert "max(a, b)" in out


def test_a_limited_stretch_is_said_of_every_method(run_cli: Cli) -> None:
    rng = np.random.default_rng(5)
    for folder in ("ir", "vis"):
        write_image(f"{folder}/1.png", rng.normal(100, 2, (24, 32)).round().astype(np.uint8))
    words = (*SOURCES[:-1], "--bundle", "ours=ir_vis", "--network", "fast", "--metrics", "SD", "--json", "r.json")
    code, out, err = run_cli("eval", *words)
    assert code == 0, err
    found = {remark["text"]: remark["images"] for remark in read_json("r.json")["remarks"]}
    for method in ("ours", "max(a, b)", "average"):
        (text,) = [text for text in found if text.startswith(f"{method}: ")]
        assert len(found[text]) == 1
        assert text in out + err


def _float_pair() -> tuple[Array, Array, Array]:
    """Infrared in Kelvin, visible, and a result, all as float TIFF without a gap."""
    rng = np.random.default_rng(3)
    a, b, fused = (cv2.GaussianBlur(rng.random((60, 70)), (0, 0), 3).astype(np.float32) for _ in range(3))
    a = (a - a.min()) / (a.max() - a.min()) * 30 + 280
    for folder, image in (("a", a), ("b", b), ("f", fused)):
        write_image(f"{folder}/1.tif", image)
    return a, b, fused


def test_pixels_without_a_value_are_left_out_and_counted(run_cli: Cli) -> None:
    a, b, fused = _float_pair()
    b[:, :7], fused[-5:], a[:4] = np.nan, np.nan, np.nan
    a[30, 40] = np.nan
    for folder, image in (("holed_a", a), ("holed_b", b), ("holed_f", fused)):
        write_image(f"{folder}/1.tif", image)
    sources = ("--ir", "holed_a", "--vis", "holed_b", "--no-trivial", "--jobs", 1)
    code, out, err = run_cli("eval", *sources, "--fused", "holed_f", "--fused", "f", "--json", "r.json")
    assert code == 0
    document = read_json("r.json")
    count = 60 * 70 - (60 - 4 - 5) * (70 - 7) + 1
    assert [remark["pixels"] for remark in document["remarks"]] == [count]
    assert str(count) in out + err
    # All methods are scored on the same pixels.
    means = {(entry["method"], entry["metric"]): entry["mean"] for entry in document["summary"]}
    assert means["f", "SD"] == pytest.approx(means["holed_f", "SD"], rel=1e-6)
    valid = np.isfinite(a + b + fused)
    levels = np.round(read_image("f/1.tif")[valid].astype(np.float64) * 255)
    assert means["f", "SD"] == pytest.approx(levels.std())


@pytest.mark.parametrize("empty", ["a", "b", "f"])
def test_an_image_without_any_value_is_an_error_that_names_it(run_cli: Cli, empty: str) -> None:
    _float_pair()
    write_image(f"{empty}/1.tif", np.full((60, 70), np.nan, np.float32))
    code, _, err = run_cli("eval", "--ir", "a", "--vis", "b", "--fused", "f", "--no-trivial", "--jobs", 1, "--json", "r.json")
    assert code == 4
    assert one_sentence(err)
    assert "1" in err
    assert not Path("r.json").exists()


def test_a_sweep_over_engines_takes_the_other_source_where_one_has_no_value(run_cli: Cli) -> None:
    a, _, _ = _float_pair()
    a[:, :30] = np.nan
    write_image("a/1.tif", a)
    code, _, _ = run_cli("eval", "--ir", "a", "--vis", "b", "--fused", "f", "--shifts", "0,1", "--json", "r.json", "--jobs", 1)
    assert code == 0
    assert all(entry["mean"] is not None for entry in read_json("r.json")["misregistration"] if entry["metric"] == "SD")
