"""``eval`` in shares: merged, they are the report of one run over everything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.errors import InputError
from refusion_edge.evaluation.shards import merge
from refusion_edge.images.io import read_image, write_image
from refusion_edge.metrics import CONVENTIONS, metrics_of
from refusion_edge.network.weights import weights_path
from tests.raising import raises

Cli = Callable[..., tuple[int, str, str]]
EVAL = ("eval", "--ir", "ir", "--vis", "vis", "--jobs", 1, "--metrics", "EN,MSE,CC,vifb:SSIM")
FUSED = ("--fused", "noisy", "--fused", "mean=good", "--fused", "black")
ENGINE = ("--bundle", "ir_vis", "--network", "fast")


def shards(run_cli: Cli, count: int, *words: object) -> list[str]:
    names = [f"shard-{index}.json" for index in range(count)]
    for index, name in enumerate(names):
        assert run_cli(*EVAL, *words, "--shard", f"{index}/{count}", "--json", name)[0] == 0
    return names


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize("words", [FUSED, (*FUSED, "--no-trivial"), ("--fused", "good", *ENGINE)])
def test_merged_shards_are_the_whole(run_cli: Cli, words: tuple[str, ...]) -> None:
    assert run_cli(*EVAL, *words, "--json", "whole.json", "--csv", "whole.csv")[0] == 0
    names = shards(run_cli, 3, *words)
    code, out, _ = run_cli("eval", "--merge", *names[::-1], "--json", "merged.json", "--csv", "merged.csv")
    assert code == 0
    assert "5 images" in out
    whole, merged = (json.loads(Path(f"{name}.json").read_text()) for name in ("whole", "merged"))
    del whole["remarks"]
    assert merged == whole
    assert Path("merged.csv").read_text() == Path("whole.csv").read_text()


@pytest.mark.usefixtures("dataset")
def test_metrics_over_time_see_the_frame_before_the_shard(run_cli: Cli) -> None:
    over_time = [each.key for name in CONVENTIONS for each in metrics_of(name) if each.reads == "transition"]
    words = ("--fused", "good", *ENGINE, "--metrics", ",".join(over_time))
    assert run_cli(*EVAL, *words, "--json", "whole.json")[0] == 0
    assert run_cli("eval", "--merge", *shards(run_cli, 5, *words), "--json", "merged.json")[0] == 0
    whole, merged = (json.loads(Path(f"{name}.json").read_text()) for name in ("whole", "merged"))
    assert merged["values"] == whole["values"]
    assert any(row["value"] is not None for row in whole["values"])


@pytest.mark.usefixtures("dataset")
def test_a_shard_that_is_there_is_kept_until_something_changes(run_cli: Cli) -> None:
    (name, _) = shards(run_cli, 2, *FUSED)
    before = Path(name).stat().st_mtime_ns
    words = (*EVAL, *FUSED, "--shard", "0/2", "--json", name)
    assert "already" in run_cli(*words)[1]
    assert Path(name).stat().st_mtime_ns == before
    write_image("good/01.png", 255 - read_image("good/01.png"))
    assert "already" not in run_cli(*words)[1]
    assert Path(name).stat().st_mtime_ns != before
    Path(name).write_text(Path(name).read_text()[:-100])
    assert "already" not in run_cli(*words)[1]
    assert "already" in run_cli(*words)[1]
    assert "already" not in run_cli(*words, "--metrics", "EN")[1]


@pytest.mark.usefixtures("dataset")
def test_shards_that_do_not_make_a_whole_are_refused(run_cli: Cli) -> None:
    names = list(map(Path, shards(run_cli, 3, *FUSED)))
    with raises(InputError, "1 of 3", expected=[0, 1, 2], got=[0, 2]):
        merge([names[0], names[2]])
    with raises(InputError, "twice", got=[0, 1, 1, 2]):
        merge([*names, names[1]])
    run_cli(*EVAL, *FUSED[:2], "--shard", "0/3", "--json", "other.json")
    with raises(InputError, "other.json", "methods"):
        merge([Path("other.json"), *names[1:]])
    document = json.loads(names[1].read_text())
    document["images"] = document["images"][1:]
    names[1].write_text(json.dumps(document))
    with raises(InputError, "shard-1.json"):
        merge(names)
    Path("none.json").write_text("{}")
    with raises(InputError, "none.json", remedy="--shard"):
        merge([Path("none.json")])


@pytest.mark.usefixtures("dataset")
def test_shards_by_different_weights_are_refused(run_cli: Cli) -> None:
    words = ("--bundle", "ours=w.safetensors", "--task", "ir_vis")
    for index, network in enumerate(("fast", "refusion")):
        Path("w.safetensors").write_bytes(weights_path("ir_vis", network).read_bytes())
        assert run_cli(*EVAL, *words, "--shard", f"{index}/2", "--json", f"{index}.json")[0] == 0
    with raises(InputError, "settings", "1.json"):
        merge([Path("0.json"), Path("1.json")])


@pytest.mark.usefixtures("dataset")
def test_a_shard_depends_on_the_bit_depth_of_the_whole_set(run_cli: Cli) -> None:
    for path in Path("vis").iterdir():
        write_image(path, read_image(path).astype(np.uint16))
    (name, _) = shards(run_cli, 2, *FUSED)
    words = (*EVAL, *FUSED, "--shard", "0/2", "--json", name)
    assert "already" in run_cli(*words)[1]
    last = max(Path("vis").iterdir())
    write_image(last, read_image(last) * np.uint16(16))
    assert "already" not in run_cli(*words)[1]


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize(
    "words",
    [
        ("--shard", "0/2"),
        ("--shard", "0/2", "--json", "x.json", "--csv", "x.csv"),
        ("--shard", "0/2", "--json", "x.json", "--shifts", "0,1"),
        ("--shard", "0/6", "--json", "x.json"),
        ("--shard", "2/2", "--json", "x.json"),
    ],
)
def test_shards_say_what_they_need(run_cli: Cli, words: tuple[str, ...]) -> None:
    assert run_cli(*EVAL, *FUSED, *words)[0] == 2
    assert not Path("x.json").exists()


@pytest.mark.usefixtures("dataset")
def test_a_page_of_merged_shards_shows_their_images(run_cli: Cli) -> None:
    assert run_cli("eval", "--merge", *shards(run_cli, 2, *FUSED), "--html", "page.html")[0] == 0
    assert "data:image/jpeg" in Path("page.html").read_text()
