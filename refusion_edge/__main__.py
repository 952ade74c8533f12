"""``python -m refusion_edge``."""

from __future__ import annotations

from refusion_edge.cli import leave

if __name__ == "__main__":
    leave()
