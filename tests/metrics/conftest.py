"""Pictures for the metrics: random triples, the fixture of VIFB, and values per image of known methods."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.metrics.planes import Plane

FOLDERS = {
    "roadscene": ("ir_vis", "ir", "vis"),
    "tno": ("ir_vis", "ir", "vis"),
    "msrs": ("ir_vis", "ir", "vis"),
    "llvip": ("ir_vis", "ir", "vis"),
    "ct_mri": ("medical", "func", "mri"),
    "pet_mri": ("medical", "func", "mri"),
    "spect_mri": ("medical", "func", "mri"),
    "official_mif": ("medical", "func", "mri"),
    "lytro": ("multi_focus", "near", "far"),
    "mffw": ("multi_focus", "near", "far"),
    "mefb": ("multi_exposure", "under", "over"),
}
"""Data set to its task and the folders of its sources."""


@pytest.fixture(scope="session")
def vifb_fixture(shared_data: Path) -> Path:
    """Folder with four images of the VIFB benchmark, results of six methods and their published values."""
    folder = shared_data / "metrics_fixture"
    if not folder.is_dir():
        pytest.skip("needs the VIFB fixture beside the repository (../shared/data/metrics_fixture)")
    return folder


@pytest.fixture(scope="session")
def known_values(shared_data: Path) -> dict[tuple[str, str, str], dict[str, float]]:
    """Values that the Evaluator itself gave: (data set, method, image) to metric to value."""
    path = shared_data.parent / "design" / "per_image.csv"
    if not path.is_file():
        pytest.skip("needs the Evaluator's values beside the repository (../shared/design/per_image.csv)")
    with path.open(encoding="utf-8") as file:
        return {
            (row.pop("dataset"), row.pop("method"), row.pop("name")): {name: float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        }


@pytest.fixture
def triple() -> Callable[..., tuple[Plane, Plane, Plane]]:
    """Make sources and a result that looks like both: ``triple(height, width, seed=0)``."""
    import cv2

    def make(height: int, width: int, seed: int = 0) -> tuple[Plane, Plane, Plane]:
        rng = np.random.default_rng(seed)
        noise = [cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), sigma) for sigma in (1.0, 2.0, 0.8)]
        a, b, own = (np.round(np.clip(120 + 50 * plane / plane.std(), 0, 255)) for plane in noise)
        return a, b, np.round(np.clip(0.7 * np.maximum(a, b) + 0.3 * own, 0, 255))

    return make


def pair_paths(shared_data: Path, dataset: str, name: str) -> tuple[Path, Path]:
    """Files of one test pair."""
    task, folder_a, folder_b = FOLDERS[dataset]
    first = next((shared_data / task / "test" / folder_a).glob(f"{dataset}__{name}.*"))
    return first, shared_data / task / "test" / folder_b / first.name
