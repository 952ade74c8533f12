"""Our numbers against numbers that others published or computed with the original code."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

import refusion_edge
from refusion_edge.arrays import Array
from refusion_edge.images.io import read_image
from refusion_edge.metrics import find_metric, metrics_of, score
from refusion_edge.metrics.planes import to_gray_plane
from tests.metrics.conftest import FOLDERS, pair_paths

VIFB = (
    "Avg_gradient", "Cross_entropy", "Edge_intensity", "Entropy", "Mutinf", "Psnr", "Qabf", "Qcb", "Qcv", "Rmse",
    "Spatial_frequency", "Ssim", "Variance",
)  # fmt: skip
IMAGES = ("carLight", "manWalking", "nightCar", "walking")

# The known values have six digits.
SIX_DIGITS = 1.1e-5
# The same network on another engine differs by one gray level in up to 0.05 % of the pixels.
ONE_LEVEL_HERE_AND_THERE = 3e-4

Known = dict[tuple[str, str, str], dict[str, float]]


@pytest.mark.parametrize("image", [IMAGES[0], *(pytest.param(image, marks=pytest.mark.slow) for image in IMAGES[1:])])
def test_every_published_value_of_vifb_is_met_to_its_last_digit(vifb_fixture: Path, image: str) -> None:
    metrics = {name: find_metric(f"vifb:{name}") for name in VIFB}
    assert set(metrics.values()) == set(metrics_of("vifb"))
    infrared, visible = read_image(vifb_fixture / "ir" / f"{image}.jpg"), read_image(vifb_fixture / "vis" / f"{image}.jpg")
    with (vifb_fixture / "published.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["image"] == image]
    assert len(rows) == 6
    for row in rows:
        values = score(infrared, visible, read_image(vifb_fixture / row["fused_file"]), list(metrics.values()))
        for name, metric in metrics.items():
            published = float(row[name])
            digit = 10.0 ** (math.floor(math.log10(abs(published))) - 4)
            assert abs(values[metric] - published) <= 0.51 * digit, (row["method"], name, values[metric], published)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", FOLDERS)
def test_the_average_of_both_sources_scores_what_the_evaluator_gave_it(
    shared_data: Path, known_values: Known, dataset: str
) -> None:
    names = sorted(name for found, method, name in known_values if (found, method) == (dataset, "average"))[:3]
    if dataset == "mefb":
        names.append("Exploratorium")  # its grays are often near a half
    for name in names:
        a, b = (read_image(path) for path in pair_paths(shared_data, dataset, name))
        average = np.round((to_gray_plane(a) + to_gray_plane(b)) / 2).astype(np.uint8)
        assert_known(a, b, average, known_values[dataset, "average", name], SIX_DIGITS)


@pytest.mark.parametrize(
    ("dataset", "name", "file"),
    [
        ("msrs", "00710N", "IVIF/Gray/00710N.png"),
        ("msrs", "00906N", "IVIF/Gray/00906N.png"),
        ("lytro", "05", "MFIF/Gray/5.png"),
        ("lytro", "14", "MFIF/Gray/14.png"),
        ("mefb", "AirBellowsGap", "MEIF/Gray/AirBellowsGap.png"),
        ("official_mif", "MRI_PET_14", "MIF/Gray/MRI_PET_14.png"),
    ],
)
def test_official_results_score_what_the_evaluator_gave_them(
    shared_data: Path, known_values: Known, dataset: str, name: str, file: str
) -> None:
    a, b = (read_image(path) for path in pair_paths(shared_data, dataset, name))
    fused = read_image(shared_data / "reference" / "official_results" / file)
    assert_known(a, b, fused, known_values[dataset, "ReFusion official", name], ONE_LEVEL_HERE_AND_THERE)


@pytest.mark.parametrize(
    ("dataset", "weights", "names"),
    [
        ("tno", "IVIF", ("07", "20")),
        ("roadscene", "IVIF", ("FLIR_06974", "FLIR_06995")),
        ("ct_mri", "MIF", ("32011",)),
        ("pet_mri", "MIF", ("30043",)),
        ("spect_mri", "MIF", ("25014",)),
        ("mffw", "MFIF", ("mffw_01", "mffw_05")),
        ("mefb", "MEIF", ("Chair",)),
    ],
)
def test_fusing_with_the_official_weights_scores_what_the_evaluator_gave_them(
    shared_data: Path, known_values: Known, dataset: str, weights: str, names: tuple[str, ...]
) -> None:
    checkpoint = shared_data / "reference" / "checkpoints" / f"ReFusion_{weights}.pth"
    with refusion_edge.load(checkpoint, task=FOLDERS[dataset][0]) as fuser:
        for name in names:
            a, b = (read_image(path) for path in pair_paths(shared_data, dataset, name))
            fused = fuser.fuse(a, b, color=False)
            assert_known(a, b, fused, known_values[dataset, "ReFusion official", name], ONE_LEVEL_HERE_AND_THERE)


def assert_known(a: Array, b: Array, fused: Array, known: dict[str, float], tolerance: float) -> None:
    values = score(a, b, fused)
    assert {metric.name for metric in values} == set(known)
    for metric, value in values.items():
        assert value == pytest.approx(known[metric.name], rel=tolerance), metric.name
