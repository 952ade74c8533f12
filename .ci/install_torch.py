"""Install a CPU build of torch, and refuse to install gigabytes of CUDA libraries by accident.

python .ci/install_torch.py 'torch==2.13.0'
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--quiet", "install"]
_CUDA_PREFIXES = ("nvidia-", "cuda-", "triton")


def main() -> int:
    """Check what pip would install, then install it."""
    (requirement,) = sys.argv[1:]
    if importlib.util.find_spec("torch") is not None:
        return 0
    planned = subprocess.run([*_PIP, "--dry-run", "--report", "-", requirement], stdout=subprocess.PIPE, text=True, check=False)
    if planned.returncode:
        return planned.returncode
    names = [item["metadata"]["name"].lower() for item in json.loads(planned.stdout)["install"]]
    cuda = [name for name in names if name.startswith(_CUDA_PREFIXES)]
    if cuda:
        print(
            f"{requirement} would install {len(cuda)} CUDA packages ({', '.join(cuda[:3])}, ...); name a CPU build with make "
            "TORCH=...",
            file=sys.stderr,
        )
        return 1
    return subprocess.run([*_PIP, requirement], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
