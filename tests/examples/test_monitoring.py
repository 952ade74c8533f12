"""The example rules and the example dashboard ask for figures that a stream has, in PromQL that Prometheus accepts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from refusion_edge.stream.outputs.prometheus import RigFigures, to_prometheus
from refusion_edge.stream.statistics import Statistics
from tests.conftest import ROOT

FOLDER = ROOT / "examples" / "monitoring"
METRIC = re.compile(r"(?<![\w:])refusion_edge_\w+")


def everything() -> str:
    """The figures of a stream in which everything has happened."""
    statistics = Statistics()
    for where in ("ir", "pair", "recording", "output null://"):
        statistics.dropped(where, 'a "cause"\n')
    statistics.wrote("null://")
    statistics.refined({"correction_px": 0.5})
    statistics.took("infer", 25_000_000)
    statistics.took("infer", 75_000_000)
    return to_prometheus([RigFigures("gate", statistics.snapshot(), 2), RigFigures("yard", statistics.snapshot(), 0)])


def emitted() -> set[str]:
    return {re.split(r"[{ ]", line)[0] for line in everything().splitlines() if not line.startswith("#")}


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return document


def expressions() -> list[str]:
    rules = yaml.safe_load((FOLDER / "rules.yml").read_text())
    found = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    found += [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return found + [variable["definition"] for variable in dashboard()["templating"]["list"] if "definition" in variable]


def test_rules_and_dashboard_ask_for_figures_that_there_are() -> None:
    asked = {name for expression in expressions() for name in METRIC.findall(expression)}
    assert len(asked) > 10
    assert asked - emitted() == {"refusion_edge_camera_frame_rate_hertz"} & asked  # it has no value before the first frames
    assert "refusion_edge_camera_frame_rate_hertz" in everything()


def test_a_summary_has_its_sum_and_count() -> None:
    lines = everything().splitlines()
    assert 'refusion_edge_stage_duration_seconds_sum{rig="gate",stage="infer"} 0.1' in lines
    assert 'refusion_edge_stage_duration_seconds_count{rig="yard",stage="infer"} 2' in lines
    assert lines.count("# TYPE refusion_edge_stage_duration_seconds summary") == 1


def test_names_follow_the_conventions() -> None:
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", everything(), re.MULTILINE))
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in kinds.items())
    assert not [name for name in kinds if re.search(r"_(ms|fps|px|hz|percent)(_|$)", name)]


def test_panels_do_not_overlap_and_have_a_source() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }  # fmt: skip
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"]
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("needs promtool")
    return found


def test_prometheus_accepts_figures_rules_and_configuration(promtool: str, tmp_path: Path) -> None:
    for name in ("rules.yml", "prometheus.yml"):
        shutil.copy(FOLDER / name, tmp_path)
    configuration = (tmp_path / "prometheus.yml").read_text()
    (tmp_path / "token").write_text("x")
    (tmp_path / "prometheus.yml").write_text(configuration.replace("/etc/prometheus/refusion-edge.token", "token"))
    queries = tmp_path / "queries.yml"
    panels = [
        {"record": f"panel:{number}", "expr": re.sub(r"\[\$__rate_interval\]", "[1m]", target["expr"])}
        for number, target in enumerate(target for panel in dashboard()["panels"] for target in panel["targets"])
    ]
    queries.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": panels}]}))
    for words, given in (
        (["check", "metrics"], everything()),
        (["check", "rules", str(tmp_path / "rules.yml")], ""),
        (["check", "rules", str(queries)], ""),
        (["check", "config", str(tmp_path / "prometheus.yml")], ""),
    ):
        done = subprocess.run([promtool, *words], input=given, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
