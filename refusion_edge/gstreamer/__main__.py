"""Registers the element ``refusion`` with GStreamer: writes a plugin of one file that imports it from this environment.

python -m refusion_edge.gstreamer [--folder DIR] [--remove]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from refusion_edge.errors import MissingDependencyError, RefusionError
from refusion_edge.files import output_error

_SYSTEM_PYTHON = "/usr/bin/python3"
_PACKAGES = "gstreamer1.0-python3-plugin-loader python3-gst-1.0 gstreamer1.0-tools"
_PLUGIN = '''"""Made by python -m refusion_edge.gstreamer: the element refusion, from the environment in which it was called."""

import site
import sys

before = [*sys.path]
site.addsitedir({packages!r})
# Packages of the environment come before those of the system.
sys.path[:] = [*(path for path in sys.path if path not in before), *before]

from refusion_edge.gstreamer.element import __gstelementfactory__
'''


def main(words: list[str] | None = None) -> int:
    """Write or remove the plugin; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m refusion_edge.gstreamer", description="Register the element refusion with GStreamer."
    )
    parser.add_argument("--folder", type=Path, help="plugin folder, such as one on GST_PLUGIN_PATH (default: the user's)")
    parser.add_argument("--remove", action="store_true", help="remove the plugin")
    options = parser.parse_args(words)
    path = (options.folder or user_folder()) / "python" / "refusion.py"
    try:
        if options.remove:
            path.unlink(missing_ok=True)
            print(f"removed {path}")
        else:
            require_same_python()
            write_plugin(path)
            print(f"wrote {path}; check it with: gst-inspect-1.0 refusion")
    except RefusionError as error:
        print(f"refusion-edge: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def user_folder() -> Path:
    """The folder in which GStreamer looks for plugins of this user."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(data) / "gstreamer-1.0/plugins"


def require_same_python() -> None:
    """Require that GStreamer's Python can load the packages of this environment.

    Raises:
        MissingDependencyError: It has another version, or it is missing.
    """
    question = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([_SYSTEM_PYTHON, "-I", "-c", question], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingDependencyError(f"GStreamer's Python does not run ({error})", f"run: apt install {_PACKAGES}") from error
    here, there = "{}.{}".format(*sys.version_info[:2]), done.stdout.strip()
    if here != there:
        raise MissingDependencyError(
            f"GStreamer runs elements in Python {there}, but this is Python {here}",
            f"install refusion-edge into an environment made by {_SYSTEM_PYTHON} -m venv", expected=there, got=here,
        )  # fmt: skip


def write_plugin(path: Path) -> None:
    """Write the plugin, which imports the packages of the environment of this process.

    Raises:
        OutputError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_PLUGIN.format(packages=sysconfig.get_path("purelib")))
    except OSError as error:
        raise output_error(path, error) from error


if __name__ == "__main__":
    raise SystemExit(main())
