"""The configuration file of a stream: cameras, rig, network and outputs in one YAML file.

Its keys are the names of ``StreamSettings``, and none is required:

    schema: refusion-edge/stream-config/1
    ir: v4l2:///dev/v4l/by-id/usb-thermal?format=y16
    vis: v4l2:///dev/v4l/by-id/usb-visible
    rig: rig.yaml
    network: auto
    outputs: [view://0.0.0.0:8080, fused.mkv]

Relative paths are relative to the folder of the file. The file is not trusted: a GStreamer pipeline in it runs only if the user
allows it, which the file itself cannot do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from refusion_edge.documents import parse_yaml, shown
from refusion_edge.errors import InputError
from refusion_edge.files import read_file, write_atomically
from refusion_edge.stream.run.settings import FAR, StreamSettings, make_settings
from refusion_edge.stream.uri import anchored
from refusion_edge.text import printable, redact, secrets_in

SCHEMA = "refusion-edge/stream-config/1"
MOST_BYTES = 256 << 10
_PATHS = ("rig", "bundle", "weights", "replay", "record", "clips")
# A file cannot declare itself trusted.
_NEVER_IN_A_FILE = ("trust",)


def read_config(path: str | os.PathLike[str], *, trust: bool = False) -> StreamSettings:
    """Read the settings of a stream from a file.

    Args:
        path: The file.
        trust: Whether the user trusts the pipelines in it.

    Raises:
        InputError: The file cannot be read, has an unknown key (the remedy names the nearest one) or an unusable value,
            or names a pipeline and is not trusted.
    """
    path = Path(path)
    try:
        values = parse_config(read_file(path, kind="configuration file", most_bytes=MOST_BYTES))
        if "rigs" in values:
            raise InputError(
                "it configures several rigs, but this is a single stream", "run it with 'refusion-edge stream --config'"
            )
        return settings_of(values, path.parent, trust=trust)
    except InputError as error:
        raise error if str(path) in error.problem else error.within(str(path)) from error


def parse_config(text: bytes | str) -> dict[str, Any]:
    """Parse a configuration file to plain values by key, without its schema; ``settings_of`` checks them.

    Raises:
        InputError: It is not YAML, not a table, or of another schema.
    """
    values = parse_yaml(text, "the configuration")
    if not isinstance(values, dict):
        raise InputError(f"the configuration is {shown(values)}", "write one setting per line, such as 'network: fast'")
    schema = values.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise InputError(f"its schema is {shown(schema)}", f"use {SCHEMA}", expected=SCHEMA, got=schema)
    return values


def settings_of(values: Mapping[str, Any], folder: Path, *, trust: bool = False) -> StreamSettings:
    """Turn the values of a configuration into settings.

    Args:
        values: By the names of ``StreamSettings``, as ``make_settings`` takes them.
        folder: Folder that relative paths start from.
        trust: See ``read_config``.

    Raises:
        InputError: See there.
    """
    for name in _NEVER_IN_A_FILE:
        if name in values:
            raise InputError(f"'{name}' is not allowed in the file", f"give --{name} on the command line")
    settings = _moved(make_settings(values, error=InputError), folder)
    for text in (settings.ir, settings.vis, *settings.outputs):
        # In any case: GST:// is a pipeline as well.
        if text is not None and text.lower().startswith("gst:") and not trust:
            raise InputError(
                f"it names a GStreamer pipeline, which can run anything on this machine: {printable(redact(text))}",
                "if you trust the file, repeat the command with --trust",
            )
    return replace(settings, trust=trust)


def write_config(path: str | os.PathLike[str], settings: StreamSettings) -> None:
    """Write the settings that differ from their defaults; only the owner can read a file that contains a secret.

    Raises:
        OutputError: The file cannot be written.
    """
    path = Path(path)
    texts = [value for field in fields(settings) if isinstance(value := getattr(settings, field.name), str)]
    secret = settings.token is not None or any(map(secrets_in, (*texts, *settings.outputs)))
    write_atomically(path, format_config(settings, path.parent).encode(), mode=0o600 if secret else None)


def format_config(settings: StreamSettings, folder: Path) -> str:
    """Render settings as YAML for a file in this folder, with paths relative to it."""
    import yaml

    there = _moved(settings, Path(os.path.relpath(Path(), folder)))
    values: dict[str, Any] = {"schema": SCHEMA}
    for field in fields(there):
        value = getattr(there, field.name)
        if value != field.default and field.name not in _NEVER_IN_A_FILE:
            values[field.name] = list(value) if isinstance(value, tuple) else FAR if value == math.inf else value
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=10_000)
    return text


def _moved(settings: StreamSettings, folder: Path) -> StreamSettings:
    """The same settings with relative paths that begin at a folder."""
    changed: dict[str, Any] = {
        name: str(folder / value) for name in _PATHS if (value := getattr(settings, name)) is not None
    }  # fmt: skip
    changed |= {name: anchored(value, folder) for name in ("ir", "vis") if (value := getattr(settings, name)) is not None}
    changed["outputs"] = tuple(anchored(text, folder) for text in settings.outputs)
    if settings.tls is not None:
        changed["tls"] = tuple(str(folder / file) for file in settings.tls)
    return replace(settings, **changed)
