"""Fusing images: the official results, the choice of source, and images as cameras deliver them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import refusion_edge
from refusion_edge.arrays import Array, State
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.errors import BundleError, CheckpointError, GateError, InputError, ShapeError, UsageError
from refusion_edge.export.build import build
from refusion_edge.fuser import load
from refusion_edge.images.io import read_image
from refusion_edge.images.samples import sample_paths
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, write_safetensors
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import TASKS
from tests.raising import raises

Picture = Callable[..., Array]

OFFICIAL_CASES = [
    ("ir_vis", "IVIF", "infrared", "visible", "00710N.png"),
    pytest.param("ir_vis", "IVIF", "infrared", "visible", "00906N.png", marks=pytest.mark.slow),
    ("medical", "MIF", "CT_PET_SPECT", "MRI", "MRI_PET_14.png"),
    pytest.param("medical", "MIF", "CT_PET_SPECT", "MRI", "MRI_PET_37.png", marks=pytest.mark.slow),
    pytest.param("multi_focus", "MFIF", "near", "far", "14.jpg", marks=pytest.mark.slow),
    ("multi_focus", "MFIF", "near", "far", "5.jpg"),
    ("multi_exposure", "MEIF", "under", "over", "AirBellowsGap.png"),
    pytest.param("multi_exposure", "MEIF", "under", "over", "ICCV_03.png", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("task", "official", "folder_a", "folder_b", "name"), OFFICIAL_CASES)
def test_official_images_are_reproduced(
    shared_data: Path, task: str, official: str, folder_a: str, folder_b: str, name: str
) -> None:
    reference = shared_data / "reference"
    a = read_image(reference / "test_cases" / official / folder_a / name)
    b = read_image(reference / "test_cases" / official / folder_b / name)
    expected_gray = read_image(reference / "official_results" / official / "Gray" / f"{Path(name).stem}.png")
    expected_color = read_image(reference / "official_results" / official / "RGB" / f"{Path(name).stem}.png")
    with load(reference / "checkpoints" / f"ReFusion_{official}.pth", task=task, threads=1) as fuser:
        gray, color = fuser.fuse(a, b, color=False), fuser.fuse(a, b)
    assert np.abs(gray.astype(int) - expected_gray).max() <= 1
    # One level of luma moves blue by 1.8 levels at most, through rounding by 2.
    assert np.abs(color.astype(int) - expected_color).max() <= 2
    assert (gray != expected_gray).mean() < 0.01


@pytest.fixture(scope="module")
def fuser() -> refusion_edge.Fuser:
    return load("ir_vis")


def test_the_former_name_of_color_works_and_warns(fuser: refusion_edge.Fuser, picture: Picture) -> None:
    a, b = picture(20, 30), picture(20, 30, 3)
    with pytest.warns(DeprecationWarning, match="color"):
        former = fuser.fuse(a, b, colour=False)
    assert np.array_equal(former, fuser.fuse(a, b, color=False))


@pytest.mark.parametrize("size_hw", [(8, 8), (8, 200), (45, 63), (101, 77)])
@pytest.mark.parametrize(("channels_a", "channels_b"), [(1, 1), (1, 3), (3, 1), (3, 3)])
def test_size_and_color_out_follow_the_sources(
    fuser: refusion_edge.Fuser, picture: Picture, size_hw: tuple[int, int], channels_a: int, channels_b: int
) -> None:
    fused = fuser.fuse(picture(*size_hw, channels_a), picture(*size_hw, channels_b))
    assert fused.dtype == np.uint8
    assert fused.shape == (size_hw if channels_a == channels_b == 1 else (*size_hw, 3))
    assert fused.std() > 5


def test_sixteen_bit_thermal_gives_nearly_the_image_of_its_eight_bit_form(fuser: refusion_edge.Fuser, picture: Picture) -> None:
    visible = picture(60, 80, 3)
    shown = picture(60, 80)
    counts = (21_000 + shown.astype(np.uint16) * 4).astype(np.uint16)
    from_counts = fuser.fuse(counts, visible, color=False).ravel()
    from_shown = fuser.fuse(shown, visible, color=False).ravel()
    assert np.corrcoef(from_counts, from_shown)[0, 1] > 0.98
    # Taking the high byte, or wrapping round, would leave next to nothing of it.
    without = fuser.fuse((counts >> 8).astype(np.uint8) + np.eye(60, 80, dtype=np.uint8), visible, color=False).ravel()
    assert np.corrcoef(without, from_shown)[0, 1] < 0.9


def test_fixed_range_does_not_depend_on_the_rest_of_the_image(picture: Picture) -> None:
    a, b = picture(40, 40), picture(40, 40)
    with load("ir_vis", output_range="fixed") as fixed, load("ir_vis") as stretched:
        assert fixed.fuse(a, b).max() < 255
        assert (stretched.fuse(a, b).min(), stretched.fuse(a, b).max()) == (0, 255)


@pytest.mark.parametrize("task", TASKS)
def test_sample_pairs_keep_the_best_of_both_sources(task: str) -> None:
    """The fused image is closer to each source than that source is to the other."""
    with load(task) as fuser:
        for paths in sample_paths(task):
            a, b = read_image(paths.a), read_image(paths.b)
            fused = fuser.fuse(a, b, color=False).astype(float).ravel()
            gray_a, gray_b = (x.mean(axis=2).ravel() if x.ndim == 3 else x.ravel() for x in (a, b))
            between = np.corrcoef(gray_a, gray_b)[0, 1]
            assert np.corrcoef(fused, gray_a)[0, 1] > between
            assert np.corrcoef(fused, gray_b)[0, 1] > between


def test_golden_image_of_our_own_weights() -> None:
    """The pixels of a small crop, so that a change of weights or arithmetic is made on purpose."""
    golden = np.load(Path(__file__).parent / "data" / "golden_fused.npz")
    for task in TASKS:
        a, b = golden[f"{task}_a"], golden[f"{task}_b"]
        with load(task, output_range="fixed") as fuser:
            fused = fuser.fuse(a, b, color=False)
        assert np.abs(fused.astype(int) - golden[f"{task}_fused"]).max() <= 1, task


def test_sources_of_a_fuser(random_state: State, picture: Picture) -> None:
    a, b = picture(16, 16), picture(16, 16)
    write_safetensors("own.safetensors", Checkpoint("medical", random_state))
    write_safetensors("anonymous.safetensors", Checkpoint(None, random_state))
    build(BuildSpec("medical", "fp32", weights=Path("own.safetensors"), output=Path("bundle"), size_hw=(16, 16)))
    with (
        load("own.safetensors") as from_file,
        load("anonymous.safetensors", task="medical") as from_anonymous,
        load("bundle") as from_bundle,
    ):
        assert from_file.task is from_anonymous.task is from_bundle.task is TASKS["medical"]
        expected = from_file.fuse(a, b)
        assert np.array_equal(from_anonymous.fuse(a, b), expected)
        assert np.abs(from_bundle.fuse(a, b).astype(int) - expected).max() <= 1


def test_sources_that_contradict_are_refused(random_state: State) -> None:
    write_safetensors("anonymous.safetensors", Checkpoint(None, random_state))
    with raises(UsageError, "anonymous.safetensors", remedy="--task"):
        load("anonymous.safetensors")
    with raises(CheckpointError, remedy="--task ir_vis", expected="medical", got="ir_vis"):
        load(weights_path("ir_vis"), task="medical")
    with raises(BundleError, "no_such_thing", "bundle"):
        load("no_such_thing")
    with raises(UsageError, expected=("stretch", "fixed"), got="wide"):
        load("ir_vis", output_range="wide")  # type: ignore[arg-type]
    build(BuildSpec("medical", "fp32", "onnxruntime", output=Path("bundle"), size_hw=(16, 16)))
    with raises(UsageError, "bundle", expected="onnxruntime", got="eager"):
        load("bundle", backend="eager")


def test_images_that_cannot_be_fused_are_refused(fuser: refusion_edge.Fuser, picture: Picture) -> None:
    with raises(ShapeError, expected=(20, 30), got=(30, 20)):
        fuser.fuse(picture(20, 30), picture(30, 20))
    with raises(InputError, "source a"):
        fuser.fuse(np.zeros((20, 20), np.uint8), picture(20, 20))


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_limited_stretch_is_logged(rng: np.random.Generator, caplog: pytest.LogCaptureFixture, kind: type) -> None:
    a, b = np.round(100 + rng.normal(0, 2, (2, 16, 20))).astype(np.uint8)
    if kind is np.float32:
        b = b / np.float32(255)
    with load("ir_vis", network="fast", threads=1) as fuser:
        fuser.fuse(a, b)
    assert len(caplog.records) == 1
    caplog.clear()
    with load("ir_vis", network="fast", threads=1, output_range="fixed") as fuser:
        fuser.fuse(a, b)
    assert not caplog.records


@pytest.mark.filterwarnings("ignore:overflow")
def test_broken_weights_make_no_image(random_state: State, picture: Picture) -> None:
    huge = {name: array * np.float32(1e15) for name, array in random_state.items()}
    write_safetensors("huge.safetensors", Checkpoint("ir_vis", huge))
    with load("huge.safetensors") as fuser, raises(GateError, "NaN"):
        fuser.fuse(picture(20, 20), picture(20, 20))
    with raises(CheckpointError, "project_in_1.weight", "float16"):
        build(BuildSpec("ir_vis", "fp16", weights=Path("huge.safetensors"), size_hw=(32, 32)))
    write_safetensors("zero.safetensors", Checkpoint("ir_vis", {name: array * 0 for name, array in random_state.items()}))
    with raises(GateError, "the pair"):
        build(BuildSpec("ir_vis", "fp32", weights=Path("zero.safetensors"), size_hw=(32, 32)))


def test_threads_are_bounded() -> None:
    for threads in (-1, 100_000):
        with raises(UsageError, expected=(0, 256), got=threads):
            load("ir_vis", threads=threads)


def test_weights_of_the_package_say_their_task() -> None:
    for task in TASKS:
        checkpoint = read_checkpoint(weights_path(task))
        assert checkpoint.task == task
        assert checkpoint.notes["training"]
        assert weights_path(task).with_suffix(".md").is_file()


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_a_batch_is_its_images_one_by_one(fuser: refusion_edge.Fuser, picture: Picture, order: str) -> None:
    a, b = (np.stack([picture(20, 30, channels) for _ in range(3)]) for channels in (1, 3))
    fused = fuser.fuse(a, b, color_order=order)  # type: ignore[arg-type]
    assert fused.shape == (3, 20, 30, 3)
    for number in range(3):
        assert np.array_equal(fused[number], fuser.fuse(a[number], b[number], color_order=order))  # type: ignore[arg-type]
    tensor_first = fuser.fuse(a[:, None], np.moveaxis(b, -1, 1), color_order=order)  # type: ignore[arg-type]
    assert np.array_equal(np.moveaxis(tensor_first, 1, -1), fused)
    b[1] = 7
    with raises(InputError, "pair 1", "source b"):
        fuser.fuse(a, b)


@pytest.mark.parametrize(("dtype", "white"), [(np.uint16, 65535), (np.float32, 1.0), (np.float64, 1.0)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_result_of_a_deeper_type_is_the_same_image_unrounded(
    fuser: refusion_edge.Fuser, picture: Picture, dtype: type, white: float, channels: int
) -> None:
    a, b = picture(40, 50), picture(40, 50, channels)
    deep = (b / 255 * white).round() if white > 1 else b / 255
    fused = fuser.fuse(a, deep.astype(dtype))
    assert fused.dtype == dtype
    assert (fused.min() >= 0, fused.max() <= white) == (True, True)
    expected = fuser.fuse(a, b)
    assert np.abs(fused.astype(float) / white * 255 - expected).max() <= 0.52
    # More levels than 8 bits hold: nothing was rounded on the way.
    assert len(np.unique(fused[..., 0] if channels == 3 else fused)) > 256


def test_tensors_and_pillow_images_come_back_as_such(fuser: refusion_edge.Fuser, picture: Picture) -> None:
    torch = pytest.importorskip("torch")
    from PIL import Image

    a, b = picture(20, 30), picture(20, 30, 3)
    expected = fuser.fuse(a, b)
    image = fuser.fuse(Image.fromarray(a), Image.fromarray(b), color_order="bgr")
    assert np.array_equal(np.asarray(image), expected)
    tensor = fuser.fuse(torch.from_numpy(a), torch.from_numpy(b).permute(2, 0, 1))
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), expected)
    floats = fuser.fuse(torch.from_numpy(a / 255).float(), (torch.from_numpy(b) / 255).requires_grad_())
    assert (floats.dtype, floats.requires_grad) == (torch.float32, False)
    assert np.abs(floats.numpy() * 255 - expected).max() <= 0.52


def test_a_fuser_is_closed_once_and_says_so(picture: Picture) -> None:
    fuser = load("ir_vis", network="fast")
    assert "ir_vis, network fast on " in repr(fuser)
    assert fuser.warm_up((16, 24)) is fuser
    a = picture(20, 30)
    with fuser:
        fuser.fuse(a, a.T.copy().reshape(20, 30))
    fuser.close()
    assert "closed" in repr(fuser)
    with raises(UsageError, "closed"):
        fuser.fuse(a, a)
    with raises(UsageError, "closed"):
        fuser.warm_up()


def test_the_source_of_a_fuser_by_its_kind(random_state: State) -> None:
    write_safetensors("ir_vis", Checkpoint("medical", random_state))
    build(BuildSpec("medical", "fp32", "onnxruntime", output=Path("bundle"), size_hw=(16, 16)))
    with load(task="ir_vis") as task, load(weights="ir_vis") as weights, load(bundle="bundle") as bundle:
        assert (task.task.name, weights.task.name, bundle.task.name) == ("ir_vis", "medical", "medical")
        assert bundle.size_hw == (16, 16)
        bundle.warm_up()
    with raises(UsageError, remedy="bundle"):
        load()
    with raises(UsageError, "bundle", "ir_vis"):
        load("ir_vis", bundle="bundle")
    with raises(CheckpointError, expected="ir_vis", got="medical"):
        load(weights="ir_vis", task="ir_vis")
    with raises(CheckpointError, "absent"):
        load(weights="absent")
