"""Fusing images: a back end, a task, and the steps before and after the network."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, TypeVar, overload

import numpy as np
from typing_extensions import Self, Unpack

from refusion_edge.accuracy.gate import gate_pairs, run_gate
from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.backends.finisher import Finisher
from refusion_edge.backends.registry import (
    AUTO,
    DEFAULTS,
    Backend,
    Choice,
    RunOptions,
    find_entry,
    open_engine,
    open_runner,
)
from refusion_edge.bundle.folder import EngineBundle, check_target, read_bundle, record_gate
from refusion_edge.bundle.manifest import WEIGHTS, GateNotRun
from refusion_edge.bundle.trust import require_trusted
from refusion_edge.errors import CheckpointError, InputError, OutputError, UsageError
from refusion_edge.images.color import (
    MAX_GAIN,
    OUTPUT_RANGES,
    ColorOrder,
    OutputRange,
    is_limited,
    to_output_range,
    to_type,
)
from refusion_edge.images.conversion import to_still
from refusion_edge.images.holders import take_out
from refusion_edge.images.luma import Planes, to_planes
from refusion_edge.images.ranges import Remark, Span
from refusion_edge.machine import MAX_THREADS
from refusion_edge.network.checkpoint import read_checkpoint, require_network
from refusion_edge.network.family import DEFAULT_NETWORK, NETWORKS
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import TASKS, Task, find_task

ImageT = TypeVar("ImageT")

_USUAL_HW = (480, 640)
_LIMITED = Remark(
    f"the fused image has little contrast, which is raised by a factor of {MAX_GAIN:g} instead of to the full range"
)


class FuseOptions(TypedDict, total=False):
    """Options of ``Fuser.fuse``, which describes them."""

    color: bool
    color_order: ColorOrder
    a_range: Span | None
    b_range: Span | None
    batch: bool | None
    colour: bool | None


class Fuser:
    """Fuses images of one task. Use it as a context manager, and each instance from one thread only.

    Args:
        backend: What runs the network; closed together with the fuser.
        task: The task that its weights were trained for.
        output_range: ``stretch`` or ``fixed``, see ``refusion_edge.images.color.to_output_range``.
        choice: Which back end was chosen, and why; None if the engine determined it.
        network: Name of the network that it runs; None if unknown.
        size_hw: Height and width that the engine takes, or that it was optimized for; None for any.
    """

    def __init__(
        self,
        backend: Backend,
        task: Task,
        output_range: OutputRange = "stretch",
        choice: Choice | None = None,
        *,
        network: str | None = None,
        size_hw: tuple[int, int] | None = None,
    ) -> None:
        if output_range not in OUTPUT_RANGES:
            raise UsageError(
                f"unknown output range '{output_range}'",
                f"choose {' or '.join(OUTPUT_RANGES)}",
                expected=OUTPUT_RANGES,
                got=output_range,
            )
        self.backend = backend
        self.task = task
        self.output_range = output_range
        self.choice = choice
        self.network = network
        self.size_hw = size_hw
        self._closed = False
        self._finisher = Finisher(backend, output_range, "rgb")

    def __enter__(self) -> Self:
        self.backend.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        # Engines are closed once.
        if not self._closed:
            self._closed = True
            self.backend.__exit__(*exc)

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        return (
            f"<Fuser {self.task.name}, network {self.network or 'unknown'} on {self.backend.name}, {self.output_range}{closed}>"
        )

    def close(self) -> None:
        """Close the back end and free its memory, as leaving the ``with`` statement does; a second call does nothing."""
        self.__exit__(None, None, None)

    def warm_up(self, size_hw: tuple[int, int] | None = None) -> Self:
        """Run the network once, so that the first image takes no longer than the others.

        Args:
            size_hw: Height and width of the images; None for the size of the engine, or 480x640 if it takes any.

        Returns:
            This fuser.

        Raises:
            ShapeError: The engine has another size.
        """
        noise = np.random.default_rng(0).random((1, 1, *(size_hw or self.size_hw or _USUAL_HW)), dtype=np.float32)
        planes = np.rint(noise * 255).astype(np.uint8) if self._finisher.takes_uint8 else noise
        self._open_finisher().infer(planes, planes[..., ::-1].copy())
        return self

    @overload
    def fuse(self, a: object, b: str | os.PathLike[str] | list[Any], **options: Unpack[FuseOptions]) -> Uint8Array: ...

    @overload
    def fuse(self, a: object, b: ImageT, **options: Unpack[FuseOptions]) -> ImageT: ...

    def fuse(
        self,
        a: object,
        b: object,
        *,
        color: bool = True,
        color_order: ColorOrder = "rgb",
        a_range: Span | None = None,
        b_range: Span | None = None,
        batch: bool | None = None,
        colour: bool | None = None,
    ) -> Any:
        """Fuse two registered images, or two batches of them.

        What had to be guessed about them, or is doubtful, is logged as a warning of ``refusion_edge``.

        Args:
            a: Source a (infrared, functional, near, under): a path, an array, a tensor of PyTorch, CuPy or JAX on any device, a
                Pillow image, nested lists, or anything in CPU memory with ``__array__`` or ``__dlpack__``. One image
                is (H, W), (H, W, 3) or, with the channels first, (1, H, W) or (3, H, W); a batch is (N, H, W), (N, H, W, 3),
                (N, 1, H, W) or (N, 3, H, W). uint8, uint16, or float in [0, 1]; gray infrared, CT, PET, SPECT or MRI of
                more bits or float may have any range.
            b: Source b (visible, MRI, far, over), same height, width and number.
            color: Whether to keep the color of the sources.
            color_order: Channel order of arrays and tensors; ``bgr`` for OpenCV.
            a_range: The values of source a that become black and white: two values, ``auto`` for its own range or ``full``
                for its full scale.
            b_range: The same for source b.
            batch: Whether three axes are a batch of gray images, (N, H, W); needed only for N = 3.
            colour: Former name of ``color``; deprecated.

        Returns:
            The fused image as a new object of the type of source b, with its device, its order of axes, and its dtype if it is
            uint8, uint16 (0 to 65535) or float ([0, 1]), otherwise uint8. A Pillow image is L or RGB. If source b is a path or
            nested lists, a NumPy array of uint8. If no source has color or ``color`` is not set, the result has no channel
            axis, or one channel if the channels come first.

        Raises:
            ShapeError: The two differ in size or number, are smaller than 8x8, or do not fit a fixed-size engine.
            InputError: An image cannot be read, is constant, has no valid pixel, or values out of range.
            GateError: The network's output is not finite; its weights or its engine are broken.
            UsageError: The fuser is closed.
        """
        if colour is not None:
            warnings.warn("the argument colour of Fuser.fuse is now called color", DeprecationWarning, stacklevel=2)
            color = colour
        many_a, many_b, holder = take_out(a, b, batch=batch)
        reverse = color_order == "bgr" and holder.framework != "PIL"
        images = []
        for number, (one_a, one_b) in enumerate(zip(many_a, many_b, strict=True)):
            try:
                planes = self.to_planes(one_a, one_b, color_order=color_order, a_range=a_range, b_range=b_range)
                image, remarks = self._finished(planes, color=color, dtype=holder.dtype)
            except InputError as error:
                if not holder.batched:
                    raise
                raise error.within(f"pair {number} of the batch") from error
            for remark in (*planes.remarks, *remarks):
                count = f" ({remark.pixels} pixel{'s' if remark.pixels != 1 else ''})" if remark.pixels else ""
                logging.getLogger("refusion_edge").warning("%s%s", remark.text, count)
            images.append(np.ascontiguousarray(image[..., ::-1]) if reverse and image.ndim == 3 else image)
        return holder.give_back(images)

    def _finished(self, planes: Planes, *, color: bool, dtype: np.dtype[Any]) -> tuple[Array, tuple[Remark, ...]]:
        """Run the network and all steps after it; an image of more than 8 bits is not rounded to 8 in between."""
        if dtype == np.uint8:
            output = self.infer(planes, color=color)
            # Before a plane that was finished on the device becomes the image.
            remarks = self.remarks_on(output)
            return self.to_image(output, planes, color=color), remarks
        output = self._open_finisher().infer(planes.a, planes.b, finished=False)
        return to_type(self._finish(output, planes, color=color, rounded=False), dtype), self.remarks_on(output)

    def _open_finisher(self) -> Finisher:
        if self._closed:
            raise UsageError("this fuser is closed", "load another one")
        return self._finisher

    def to_planes(
        self,
        a: object,
        b: object,
        *,
        color_order: ColorOrder = "rgb",
        a_range: Span | None = None,
        b_range: Span | None = None,
    ) -> Planes:
        """Run the steps of ``fuse`` before the network: turn two images into its inputs. Arguments and errors as there."""
        first, second = (to_still(image, name, color_order=color_order) for image, name in ((a, "source a"), (b, "source b")))
        planes = to_planes(
            first.pixels, second.pixels, self.task, encodings=(first.encoding, second.encoding), spans=(a_range, b_range),
            keep_uint8=self._finisher.takes_uint8,
        )  # fmt: skip
        notes = tuple(
            Remark(f"source {name}: {text}") for name, still in (("a", first), ("b", second)) for text in still.encoding.remarks
        )
        return replace(planes, remarks=notes + planes.remarks) if notes else planes

    def infer(self, planes: Planes, *, color: bool = True) -> Float32Array | Uint8Array:
        """Run the network, as ``fuse`` does.

        Returns:
            The fused plane, (1, 1, H, W) float32; or the finished image, (H, W) uint8, where the result is gray and the
            engine produces it in this output range on the device.
        """
        return self._open_finisher().infer(planes.a, planes.b, finished=planes.chroma is None or not color)

    def to_image(self, output: Float32Array | Uint8Array, planes: Planes, *, color: bool = True) -> Uint8Array:
        """Run the steps of ``fuse`` after the network: turn its output into an image.

        Args:
            output: Result of ``infer``.
            planes: The planes that it was computed from.
            color: Whether to keep the color of the sources.

        Raises:
            GateError: The output is not finite; the weights or the engine are broken.
        """
        return self._finish(output, planes, color=color).astype(np.uint8, copy=False)

    def remarks_on(self, output: Float32Array | Uint8Array) -> tuple[Remark, ...]:
        """What is worth saying about an output of ``infer``: whether it has too little contrast for a full stretch."""
        return (_LIMITED,) if self.output_range == "stretch" and is_limited(output) else ()

    def _finish(self, output: Float32Array | Uint8Array, planes: Planes, *, color: bool, rounded: bool = True) -> Array:
        stretch = partial(to_output_range, output_range=self.output_range)
        beside = planes.beside(output.dtype)
        return self._finisher.finish(output, planes.chroma if color else None, stretch, beside=beside, rounded=rounded)


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    task: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    bundle: str | os.PathLike[str] | None = None,
    backend: str = AUTO,
    output_range: OutputRange = "stretch",
    threads: int = 0,
    streaming: bool = False,
    network: str | None = None,
) -> Fuser:
    """Make a fuser from a task, a bundle or a weights file.

    Args:
        source: Name of a task (uses the weights of the package), folder of an engine bundle, or weights file
            (our safetensors, or an official ``.pth``). The name of a task always means the task; write ``./ir_vis`` for
            a file or folder of that name. Leave it out if one of the next three names the source.
        task: Name of the task: the source if no other is given; otherwise needed only for weights files that do not record it.
        weights: Weights file.
        bundle: Folder of an engine bundle.
        backend: Name of a back end; or ``auto`` for the one that a bundle was built for, and otherwise the first usable one
            of the table that takes weights.
        output_range: ``stretch`` or ``fixed``.
        threads: Threads of the back end; 0 for its default.
        streaming: Whether there are pauses between images, as with a camera: threads then sleep during the pauses.
        network: Name of the network, ``refusion`` or ``fast``; None for that of the file or bundle, or ``refusion`` for a
            task. Only the command ``stream`` chooses one by itself.

    Returns:
        A fuser; use it in a ``with`` statement, or close it.

    Raises:
        UsageError: The task or back end is unknown, or contradicts the source; there is no source, or more than one; the number
            of threads is out of range.
        BundleError: The bundle is damaged, or was built for another machine (``MisfitError``).
        CheckpointError: The weights cannot be used.
        BackendError: The back end cannot be used here.
        GateError: The engine of the bundle runs for the first time and is too far from the reference.
    """
    if not 0 <= threads <= MAX_THREADS:
        raise UsageError(
            f"{threads} threads are out of range",
            f"choose 0 to {MAX_THREADS}, where 0 leaves it to the back end",
            expected=(0, MAX_THREADS),
            got=threads,
        )
    if network == AUTO:
        raise UsageError(
            "only a stream chooses its network, by the rate of its cameras",
            f"choose network {' or '.join(NETWORKS)}, or leave it out",
            expected=tuple(NETWORKS),
            got=network,
        )
    named = [os.fspath(each) for each in (source, weights, bundle) if each is not None]
    if len(named) > 1 or not (named or task):
        raise UsageError(
            f"load was given {' and '.join(named) or 'no source'}",
            "give exactly one: a task, weights or a bundle",
            got=tuple(named),
        )
    if not named:
        source = find_task(task or "").name
    name = named[0] if named else os.fspath(source or "")
    options = RunOptions(threads, streaming)
    is_task = source is not None and name in TASKS
    if is_task or weights is not None or (bundle is None and Path(name).is_file()):
        checkpoint = read_checkpoint(weights_path(name, network or DEFAULT_NETWORK) if is_task else name)
        require_network(checkpoint, network, name)
        agreed = _agreed_task(task, name if is_task else checkpoint.task, name)
        runner, choice = open_runner(checkpoint.state, backend, options)
        return Fuser(runner, agreed, output_range, choice, network=checkpoint.network)
    opened = read_bundle(name)
    spec = opened.manifest.spec
    if network not in (None, spec.network):
        raise CheckpointError(
            f"the bundle {name} holds the network {spec.network}, but {network} was requested",
            f"leave --network out, or build one with --network {network}",
            expected=network,
            got=spec.network,
        )
    agreed = _agreed_task(task, opened.manifest.task, name)
    size_hw = spec.size_hw if spec.sizes_hw is None else spec.sizes_hw.opt_hw
    return Fuser(open_bundle(opened, backend, options), agreed, output_range, network=spec.network, size_hw=size_hw)


def open_bundle(bundle: EngineBundle, backend: str = AUTO, options: RunOptions = DEFAULTS, *, run_gate: bool = True) -> Backend:
    """Run the engine of a bundle.

    An engine that could not run where it was built has to pass the accuracy gate first: it fuses the sample pairs and is
    compared with the fp32 reference, as ``build`` would have done. The result is recorded in the bundle, so this happens once.

    Args:
        bundle: A bundle as returned by ``read_bundle``.
        backend: ``auto`` or the back end that it was built for.
        options: How to run.
        run_gate: Whether to run that gate; False only for code that measures the engine itself.

    Raises:
        UsageError: It was built for another back end.
        MisfitError: It was built for another machine.
        BundleError: Its engine is compiled code that was not built here, see ``refusion_edge.bundle.trust``.
        BackendError: The back end cannot be used here.
        GateError: It is too far from the reference.
    """
    built_for = bundle.manifest.backend
    if backend not in (AUTO, built_for):
        builds = bundle.manifest.precision in find_entry(backend).forms
        remedy = f"build one for it: {bundle.rebuild_command(backend)}" if builds else "leave --backend out"
        raise UsageError(
            f"the bundle {bundle.path} was built for {built_for}, not for {backend}",
            remedy,
            expected=built_for,
            got=backend,
        )
    check_target(bundle)
    require_trusted(bundle)
    running = open_engine(built_for, bundle.engine(), options)
    if run_gate and isinstance(bundle.manifest.gate, GateNotRun):
        with contextlib.ExitStack() as on_failure:
            on_failure.push(running.__exit__)
            _run_gate(bundle, running)
            on_failure.pop_all()
    return running


def _run_gate(bundle: EngineBundle, engine: Backend) -> None:
    manifest = bundle.manifest
    task = find_task(manifest.task)
    _, gate = run_gate(
        engine, read_checkpoint(bundle.path / WEIGHTS).state, gate_pairs(task, manifest.gate_hw), task, manifest.precision,
        subject=f"the engine of {bundle.path} runs for the first time and is too far from",
        remedy="do not use it, build with --precision fp32 on this machine",
    )  # fmt: skip
    # If the bundle cannot be written, the gate runs again the next time.
    with contextlib.suppress(OutputError):
        record_gate(bundle, gate)


def _agreed_task(asked: str | None, known: str | None, source: str) -> Task:
    if asked is None and known is None:
        raise UsageError(f"{source} does not record its task", f"add --task ({', '.join(TASKS)})")
    if asked is not None and known is not None and find_task(asked).name != known:
        raise CheckpointError(
            f"{source} is for {known}, but {asked} was requested",
            f"use --task {known} or other weights",
            expected=asked,
            got=known,
        )
    return find_task(asked or known or "")
