"""What to build: the specification of an engine, which is all that rebuilding it takes, its sources and its destination."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from refusion_edge.backends.registry import AUTO, BACKENDS
from refusion_edge.backends.tensorrt.settings import NO_SETTINGS, PlanSettings
from refusion_edge.images.pairs import ImagePair
from refusion_edge.machine import parse_architectures
from refusion_edge.network.family import DEFAULT_NETWORK, NETWORKS
from refusion_edge.network.forms import PRECISIONS, Precision, form_named
from refusion_edge.network.quantization import CalibrationTable
from refusion_edge.sizes import SizeRange, parse_sizes
from refusion_edge.tasks import TASKS

PROXY_LIMIT_S = 60.0
"""Seconds that the emulator may take for the gate unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Specification of an engine.

    Attributes:
        task: Name of the task.
        precision: Precision of the engine.
        backend: Back end, or ``auto``.
        size_hw: Fixed height and width, or None for any size.
        sizes_hw: Range of sizes for a compiled engine; None for the fixed size, or for the default range.
        form: Layout of the graph, or None for that of the back end.
        settings: Compiler settings; for TensorRT and TensorRT-RTX only.
        architectures: GPU architectures that a program is compiled for, 87 for sm_87; None for that of this machine. For
            the back end ``fused`` only.
        network: Name of the network.
    """

    task: str
    precision: Precision = "fp16"
    backend: str = AUTO
    size_hw: tuple[int, int] | None = None
    sizes_hw: SizeRange | None = None
    form: str | None = None
    settings: PlanSettings = NO_SETTINGS
    architectures: tuple[int, ...] | None = None
    network: str = DEFAULT_NETWORK

    @property
    def size_text(self) -> str:
        """Size of the images as ``--size`` takes it: ``480x640`` (height x width), a range, or ``dynamic``."""
        if self.sizes_hw is not None:
            return str(self.sizes_hw)
        return "dynamic" if self.size_hw is None else f"{self.size_hw[0]}x{self.size_hw[1]}"

    def command(self, weights: Path, *, calibration: Path | None = None, output: Path | None = None) -> str:
        """Write the command that builds this engine, quoted for a shell.

        Args:
            weights: Weights file to build from.
            calibration: Calibration table of an int8 engine.
            output: Bundle to replace; None for the default folder.
        """
        words = ["refusion-edge", "build", "--task", self.task, "--precision", self.precision, "--backend", self.backend]
        words += ["--size", self.size_text]
        if output is not None:
            words += ["--output", str(output), "--overwrite"]
        words += ["--weights", str(weights)]
        if calibration is not None:
            words += ["--calib-data", str(calibration)]
        if self.network != DEFAULT_NETWORK:
            words += ["--network", self.network]
        elif self.form not in (None, BACKENDS[self.backend].forms.get(self.precision)):
            words += ["--form", self.form.removeprefix("tensorrt-")]
        if self.architectures is not None:
            words += ["--arch", _architectures_text(self.architectures)]
        return shlex.join([*words, *self.settings.words()])

    def to_fields(self) -> dict[str, Any]:
        """Convert to plain values for a manifest; unset fields are left out."""
        document: dict[str, Any] = {
            "task": self.task,
            "precision": self.precision,
            "backend": self.backend,
            "size": self.size_text,
            "form": self.form,
            "architectures": None if self.architectures is None else _architectures_text(self.architectures),
            "settings": self.settings.to_fields() or None,
            "network": None if self.network == DEFAULT_NETWORK else self.network,
        }
        return {name: value for name, value in document.items() if value is not None}


@dataclass(frozen=True, slots=True)
class BuildSpec(EngineSpec):
    """The engine to build, its sources and its destination.

    Attributes:
        weights: Weights file, or None for the weights of the package.
        output: Folder of the bundle, or None for a default name.
        use_cache: Whether to use a cached engine built from the same sources, and to cache a new one.
        calibration: Ranges for int8, from ``refusion_edge.calibration.int8``; None for other precisions.
        gate_pairs: Pairs for the accuracy gate in addition to the sample pairs; they must not be calibration pairs.
        proxy: What goes through the gate where a program of the back end ``fused`` cannot run: its launches, executed by an
            emulator of their PTX or by the NumPy references. None for the PTX if that is possible within ``proxy_limit_s``,
            and else for the references.
        proxy_limit_s: Seconds that the emulator may take for the gate, as estimated.
    """

    weights: Path | None = None
    output: Path | None = None
    use_cache: bool = True
    calibration: CalibrationTable | None = None
    gate_pairs: tuple[ImagePair, ...] = ()
    proxy: Literal["ptx", "reference"] | None = None
    proxy_limit_s: float = PROXY_LIMIT_S

    @property
    def engine(self) -> EngineSpec:
        """The spec of the engine, without sources and destination."""
        return EngineSpec(**{name: getattr(self, name) for name in EngineSpec.__dataclass_fields__})


def parse_spec(document: Mapping[str, Any]) -> EngineSpec:
    """Parse the output of ``EngineSpec.to_fields``, which is untrusted.

    Raises:
        ValueError: A field is missing, unknown, of the wrong type, or has a value that this release does not know.
        UsageError: A size, an architecture or a setting is out of range.
    """
    known = {"task", "precision", "backend", "size", "form", "architectures", "settings", "network"}
    if unknown := document.keys() - known:
        raise ValueError(f"the spec contains the unknown field '{min(unknown)}'")
    texts = {name: document.get(name, "") for name in known - {"settings"}}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("a field of the spec is not text")
    # Bundles that are older than the second network do not name theirs.
    texts["network"] = texts["network"] or DEFAULT_NETWORK
    for name, choices in (("task", TASKS), ("precision", PRECISIONS), ("backend", BACKENDS), ("network", NETWORKS)):
        if texts[name] not in choices:
            raise ValueError(f"the spec names the unknown {name} '{texts[name]}', instead of one of {', '.join(choices)}")
    size_hw, sizes_hw = parse_sizes(texts["size"])
    return EngineSpec(
        task=texts["task"],
        precision=texts["precision"],
        backend=texts["backend"],
        size_hw=size_hw,
        sizes_hw=sizes_hw,
        form=form_named(texts["form"]) if texts["form"] else None,
        settings=parse_settings(document.get("settings", {})),
        architectures=parse_architectures(texts["architectures"]) if texts["architectures"] else None,
        network=texts["network"],
    )


def parse_settings(document: object) -> PlanSettings:
    """Parse the compiler settings of a spec.

    Raises:
        ValueError: They are not an object, or contain an unknown field or one of the wrong type.
        UsageError: A value is out of range.
    """
    if not isinstance(document, Mapping):
        raise ValueError("the settings of the spec are not an object")
    types: dict[str, Any] = {
        "workspace_mib": int,
        "optimization_level": int,
        "version_compatible": bool,
        "uint8_input": bool,
        "uint8_output": str,
        "plugins": bool,
    }
    assert types.keys() | {"compute_capabilities", "timing_cache"} == {field.name for field in fields(PlanSettings)}
    values = dict(document)
    capabilities = values.pop("compute_capabilities", [])
    if not isinstance(capabilities, list) or not all(isinstance(text, str) for text in capabilities):
        raise ValueError("compute_capabilities is not a list of texts")
    for name, value in values.items():
        if name not in types:
            raise ValueError(f"the settings of the spec contain the unknown field '{name}'")
        if type(value) is not types[name]:
            raise ValueError(f"{name} is not of the type {types[name].__name__}")
    return PlanSettings(**values, compute_capabilities=tuple(capabilities))


def _architectures_text(architectures: tuple[int, ...]) -> str:
    return ",".join(f"sm_{architecture}" for architecture in architectures)
