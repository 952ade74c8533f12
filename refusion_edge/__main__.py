"""``python -m refusion_edge``."""

from __future__ import annotations

from refusion_edge.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
