"""Write the golden files of ``tests/data``.

python -m tests.make_golden
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from refusion_edge.fuser import load
from refusion_edge.images import read_image
from refusion_edge.samples import sample_paths
from refusion_edge.tasks import TASKS
from tests.test_bundle import manifest

FOLDER = Path(__file__).parent / "data"
CROP = (slice(100, 145), slice(90, 153))  # 45 x 63, an odd size


def main() -> None:
    """Write all golden files."""
    (FOLDER / "manifest.json").write_text(manifest().to_json())
    arrays = {}
    for task in TASKS:
        paths = sample_paths(task)[0]
        a, b = (np.ascontiguousarray(read_image(path)[CROP]) for path in (paths.a, paths.b))
        with load(task, output_range="fixed") as fuser:
            arrays |= {f"{task}_a": a, f"{task}_b": b, f"{task}_fused": fuser.fuse(a, b, colour=False)}
    np.savez_compressed(FOLDER / "golden_fused.npz", **arrays)


if __name__ == "__main__":
    main()
