"""Each metric against an independent formulation, and against values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.plain_metrics import PLAIN
from refusion_edge.metrics import activity, edges, exposure, feature, information, similarity, structure, visual
from refusion_edge.metrics.planes import Plane, stretch, to_color_planes, to_gray_plane
from refusion_edge.metrics.registry import metrics_of, score

signal = pytest.importorskip("scipy.signal", reason="independent formulations need SciPy")

Triple = Callable[..., tuple[Plane, Plane, Plane]]


@pytest.mark.parametrize("name", [metric.name for metric in metrics_of("evaluator")])
@pytest.mark.parametrize("size", [(61, 48), (50, 97)])
def test_evaluator_agrees_with_the_plain_formulas(triple: Triple, name: str, size: tuple[int, int]) -> None:
    a, b, fused = triple(*size)
    (metric,) = (metric for metric in metrics_of("evaluator") if metric.name == name)
    planes = (fused,) if metric.reads == "fused" else (a, b, fused)
    # SSIM is computed in float32, as the Evaluator does.
    tolerance = 1e-5 if name == "SSIM" else 1e-6 if name == "SSIM255" else 1e-11
    assert metric.function(*planes) == pytest.approx(PLAIN[name](*planes), rel=tolerance)


def test_ssim_agrees_with_scikit_image(triple: Triple) -> None:
    skimage = pytest.importorskip("skimage.metrics", reason="compares with scikit-image")
    a, b, fused = triple(83, 64)
    a32, b32, f32 = (plane.astype(np.float32) for plane in (a, b, fused))
    for function, data_range in ((structure.structural_similarity, 2), (structure.structural_similarity_255, 255)):
        theirs = sum(float(skimage.structural_similarity(source, f32, data_range=data_range)) for source in (a32, b32))
        assert function(a, b, fused) == pytest.approx(theirs, abs=2e-7)
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "truncate": 3.5, "use_sample_covariance": False, "data_range": 255}
    inner = (slice(5, -5), slice(5, -5))
    theirs = sum(float(skimage.structural_similarity(x, fused, full=True, **gaussian)[1][inner].mean()) for x in (a, b))
    assert structure.structural_similarity_gaussian(a, b, fused) == pytest.approx(theirs, rel=1e-6)


def test_multi_scale_ssim_agrees_with_2d_windows(triple: Triple) -> None:
    a, b, fused = triple(181, 166)
    window = np.outer(*[np.exp(-(np.arange(-5, 6) ** 2) / 4.5)] * 2)
    window /= window.sum()

    def similarity_of(x: Plane, y: Plane) -> float:
        product = 1.0
        for scale, exponent in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            mx, my, xx, yy, xy = (signal.convolve2d(p, window, "valid") for p in (x, y, x * x, y * y, x * y))
            c1, c2 = 6.5025, 58.5225
            quality = (2 * (xy - mx * my) + c2) / (xx - mx**2 + yy - my**2 + c2)
            if scale == 4:
                quality = quality * (2 * mx * my + c1) / (mx**2 + my**2 + c1)
            product *= float(np.mean(quality)) ** exponent
            x, y = (signal.convolve2d(np.pad(p, ((0, 1), (0, 1)), "symmetric"), np.full((2, 2), 0.25), "valid") for p in (x, y))
            x, y = x[::2, ::2], y[::2, ::2]
        return product

    expected = similarity_of(a, fused) + similarity_of(b, fused)
    assert structure.multi_scale_similarity(a, b, fused) == pytest.approx(expected, rel=1e-12)


def test_exposure_similarity_agrees_with_a_loop_over_patches(triple: Triple) -> None:
    a, b, fused = triple(47, 52)
    window = np.outer(*[np.exp(-(np.arange(-5, 6) ** 2) / 4.5)] * 2)
    window /= window.sum()
    eps = np.finfo(float).eps

    def at_scale(sources: list[Plane], result: Plane) -> float:
        qualities = []
        for i in range(result.shape[0] - 10):
            for j in range(result.shape[1] - 10):
                patches = [plane[i : i + 11, j : j + 11] - plane[i : i + 11, j : j + 11].mean() for plane in sources]
                norms = [np.linalg.norm(patch) for patch in patches]
                consistency = min((np.linalg.norm(sum(patches)) + eps) / (sum(norms) + eps), 1 - eps)
                power = min(math.tan(math.pi / 2 * consistency), 10)
                contrasts = [norm + 0.001 for norm in norms]
                weights = [(contrast / 11) ** power + eps for contrast in contrasts]
                mixed = sum(w / sum(weights) * p / c for w, p, c in zip(weights, patches, contrasts, strict=True))
                desired = mixed / np.linalg.norm(mixed) * max(contrasts)
                patch = result[i : i + 11, j : j + 11]
                d, f = desired - (window * desired).sum(), patch - (window * patch).sum()
                c = (0.03 * 255) ** 2
                qualities.append((2 * (window * d * f).sum() + c) / ((window * d * d).sum() + (window * f * f).sum() + c))
        return float(np.mean(qualities))

    def halved(plane: Plane) -> Plane:
        padded = np.pad(plane, ((0, 1), (0, 1)), "symmetric")
        return ((padded[:-1, :-1] + padded[1:, :-1] + padded[:-1, 1:] + padded[1:, 1:]) / 4)[::2, ::2]

    expected = 1.0
    planes = [a, b, fused]
    for exponent in (0.0448, 0.2856, 0.3001):
        expected *= at_scale(planes[:2], planes[2]) ** (exponent / 0.6305)
        planes = [halved(plane) for plane in planes]
    assert exposure.exposure_similarity(a, b, fused) == pytest.approx(expected, rel=1e-9)


def test_feature_information_agrees_with_a_loop_over_windows(triple: Triple) -> None:
    a, b, fused = triple(14, 13)
    a[:4, :5] = fused[:4, :5]  # equal windows
    b[6:, 6:] = 50  # flat windows

    def distribution(window: Plane) -> Plane:
        values = window.T.ravel()
        spread = values.max() - values.min()
        values = (values - values.min()) / spread if spread else np.ones(9)
        return values / values.sum()

    def normalised(x: Plane, y: Plane) -> float:
        if (x == y).all():
            return 1.0
        p, q = distribution(x), distribution(y)
        flat = np.ptp(p) == 0 or np.ptp(q) == 0
        c = 0.0 if flat else float(np.corrcoef(p, q)[0, 1])
        places = np.arange(9)
        deviation = [math.sqrt(max((w * places**2).sum() - (w * places).sum() ** 2, 0)) for w in (p, q)]
        joint, covariance = np.zeros((9, 9)), 0.0
        bounds = np.zeros((10, 10))
        for i in range(9):
            for j in range(9):
                u, v = p[: i + 1].sum(), q[: j + 1].sum()
                bounds[i + 1, j + 1] = min(u, v) if c >= 0 else max(u + v - 1, 0)
                covariance += bounds[i + 1, j + 1] - u * v
        mix = c * deviation[0] * deviation[1] / covariance if c and deviation[0] and deviation[1] else 0.0
        for i in range(9):
            for j in range(9):
                mass = bounds[i + 1, j + 1] - bounds[i, j + 1] - bounds[i + 1, j] + bounds[i, j]
                joint[i, j] = mix * mass + (1 - mix) * p[i] * q[j]
        hp, hq, hj = (-sum(x * math.log2(abs(x)) for x in w.ravel() if x) for w in (p, q, joint))
        return 2 * (hp + hq - hj) / (hp + hq) if hp + hq else 0.0

    def mean_over(x: Plane, y: Plane) -> float:
        rows, columns = range(x.shape[0] - 2), range(x.shape[1] - 2)
        return float(np.mean([normalised(x[i : i + 3, j : j + 3], y[i : i + 3, j : j + 3]) for i in rows for j in columns]))

    expected = (mean_over(a, fused) + mean_over(b, fused)) / 2
    assert feature.feature_information(a, b, fused) == pytest.approx(expected, rel=1e-9)
    along_rows = [np.gradient(plane, axis=1) for plane in (a, b, fused)]
    expected = (mean_over(along_rows[0], along_rows[2]) + mean_over(along_rows[1], along_rows[2])) / 2
    assert feature.feature_information_gradient(a, b, fused) == pytest.approx(expected, rel=1e-9)
    from scipy.fft import dctn

    cosines = [dctn(plane, norm="ortho") for plane in (a, b, fused)]
    expected = feature.feature_information(*cosines)
    assert feature.feature_information_cosine(a, b, fused) == pytest.approx(expected, rel=1e-6)


def test_yang_similarity_agrees_with_a_loop_over_windows(triple: Triple) -> None:
    a, b, fused = triple(22, 25)
    b[:12, :12] = a[:12, :12]  # windows in which the sources agree
    a[15:, 15:] = b[15:, 15:] = 90  # flat windows are left out
    window = np.outer(*[np.exp(-(np.arange(-3, 4) ** 2) / 4.5)] * 2)
    window /= window.sum()

    def moments(x: Plane, y: Plane) -> tuple[float, float, float]:
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (0.0 if np.ptp(p) == 0 else (window * (p - m) ** 2).sum() for p, m in ((x, mx), (y, my)))
        covariance = 0.0 if not vx or not vy else (window * (x - mx) * (y - my)).sum()
        c = 2e-16
        return (2 * mx * my + c) * (2 * covariance + c) / ((mx**2 + my**2 + c) * (vx + vy + c)), vx, vy

    qualities = []
    for i in range(a.shape[0] - 6):
        for j in range(a.shape[1] - 6):
            x, y, f = (plane[i : i + 7, j : j + 7] for plane in (a, b, fused))
            (between, vx, vy), with_a, with_b = moments(x, y), moments(x, f)[0], moments(y, f)[0]
            if between < 0.75:
                qualities.append(max(with_a, with_b))
            elif vx + vy > 0:
                share = vx / (vx + vy)
                qualities.append(share * with_a + (1 - share) * with_b)
    assert structure.yang_similarity(a, b, fused) == pytest.approx(float(np.mean(qualities)), rel=1e-9)


def test_artifacts_agree_with_a_loop_over_pixels(triple: Triple) -> None:
    planes = triple(19, 23)
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8

    def gradient(plane: Plane, i: int, j: int) -> tuple[float, float]:
        patch = np.pad(plane, 1, "reflect")[i : i + 3, j : j + 3]
        v, h = float((patch * kernel).sum()), float((patch * kernel.T).sum())
        return math.hypot(v, h), 0.0 if v == h == 0 else math.pi / 2 * math.copysign(1, v) if h == 0 else math.atan(v / h)

    lost = weight = 0.0
    for i in range(19):
        for j in range(23):
            edge_a, edge_b, (g_f, angle_f) = (gradient(plane, i, j) for plane in planes)
            added = g_f > edge_a[0] and g_f > edge_b[0]
            for g, angle in (edge_a, edge_b):
                ratio = 0.0 if g == 0 or g_f == 0 else min(g, g_f) / max(g, g_f)
                agreement = abs(abs(angle - angle_f) - math.pi / 2) * 2 / math.pi
                kept = math.sqrt(
                    0.9999 / (1 + math.exp(-19 * (ratio - 0.5))) * 0.9995 / (1 + math.exp(-22 * (agreement - 0.5)))
                )
                w = g**1.5 if g >= 2 else 0.001
                weight += w
                lost += (1 - kept) * w * added
    assert edges.artifacts(*planes) == pytest.approx(lost / weight, rel=1e-12)


def test_information_agrees_with_scipy(triple: Triple) -> None:
    from scipy.stats import entropy

    a, b, fused = triple(40, 45)

    def probabilities(*planes: Plane) -> Plane:
        return np.histogramdd(np.stack([plane.ravel() for plane in planes], 1), [np.arange(257)] * len(planes))[0] / a.size

    assert information.entropy(fused) == pytest.approx(entropy(probabilities(fused), base=2))

    def shared(x: Plane, y: Plane) -> float:
        marginals = entropy(probabilities(x), base=2) + entropy(probabilities(y), base=2)
        return float(marginals - entropy(probabilities(x, y).ravel(), base=2))

    assert information.mutual_information(a, b, fused) == pytest.approx((shared(a, fused) + shared(b, fused)) * math.log(2))
    sa, sb, sf = stretch(a), stretch(b), stretch(fused)
    h = {id(plane): float(entropy(probabilities(plane), base=2)) for plane in (sa, sb, sf)}
    expected = sum(2 * shared(x, sf) / (h[id(x)] + h[id(sf)]) for x in (sa, sb))
    assert information.normalized_mutual_information(a, b, fused) == pytest.approx(expected)
    matrix = np.eye(3)
    for (i, x), (j, y) in ((p, q) for p in enumerate((sa, sb, sf)) for q in enumerate((sa, sb, sf)) if p[0] != q[0]):
        matrix[i, j] = shared(x, y) / 8
    assert information.nonlinear_correlation(a, b, fused) == pytest.approx(
        1 - entropy(np.linalg.eigvals(matrix) / 3, base=256), rel=1e-12
    )
    joint = probabilities(sa, sf)
    independent = np.outer(joint.sum(1), joint.sum(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        tsallis_a = (1 - np.nansum(joint**1.85 / independent**0.85)) / (1 - 1.85)
    only_a = information.tsallis_information(a, a, fused) / 2
    assert only_a == pytest.approx(tsallis_a)


# Worked out by hand: 2x2 and 2x3 images.
FUSED = np.array([[0.0, 0.0], [10.0, 30.0]])
A = np.array([[0.0, 0.0], [20.0, 20.0]])
B = np.array([[10.0, 0.0], [10.0, 30.0]])


def test_values_of_a_2x2_image() -> None:
    assert information.entropy(FUSED) == pytest.approx(1.5)  # levels with 1/2, 1/4, 1/4
    assert activity.standard_deviation(FUSED) == pytest.approx(math.sqrt(150))  # mean 10: 100 + 100 + 0 + 400, over 4
    # rows: 0 and 20; columns: 10 and 30
    assert activity.spatial_frequency(FUSED) == pytest.approx(math.sqrt(200 + 500))
    # all differences are one-sided: (0, 10), (0, 30), (20, 10), (20, 30)
    gradients = [math.sqrt((x * x + y * y) / 2) for x, y in ((0, 10), (0, 30), (20, 10), (20, 30))]
    assert activity.average_gradient(FUSED) == pytest.approx(sum(gradients) / 4)
    assert activity.average_gradient_inside(FUSED) == pytest.approx(sum(gradients))
    # squared errors: 100 + 100 for A, 100 for B
    assert similarity.mean_squared_error(A, B, FUSED) == pytest.approx((50 + 25) / 2)
    assert similarity.peak_signal_to_noise(A, B, FUSED) == pytest.approx(10 * math.log10(900 / 37.5))
    assert similarity.norm_per_pixel(A, B, FUSED) == pytest.approx((math.sqrt(200) / 4 + 10 / 4) / 2)
    # A has levels 0, 20 with 1/2 each; knowing F tells A, and A tells one bit of F: 1 bit
    assert information.mutual_information(A, A, FUSED) == pytest.approx(2 * math.log(2))
    # common levels of A and F: 0 with 1/2 in both; of B and F: 0 (1/4, 1/2), 10 (1/2, 1/4), 30 (1/4, 1/4)
    assert information.cross_entropy(A, B, FUSED) == pytest.approx((0 + (-0.25 + 0.5 + 0)) / 2)
    # A - 10 and F - 10: (-10, -10, 10, 10) and (-10, -10, 0, 20): 400 / sqrt(400 * 600)
    assert similarity.correlation(A, A, FUSED) == pytest.approx(400 / math.sqrt(400 * 600))


def test_seams_between_the_color_planes_count() -> None:
    planes = np.stack([np.zeros((1, 2)), np.full((1, 2), 4.0), np.full((1, 2), 7.0)])
    assert activity.spatial_frequency_of_color(planes) == pytest.approx(math.sqrt((16 + 9) / 6))


def test_edge_intensity_of_a_ramp_is_eight_steps() -> None:
    ramp = np.tile(np.arange(6.0), (5, 1))
    inner, border = 8.0, 4.0
    assert activity.edge_intensity(ramp) == pytest.approx((4 * inner + 2 * border) / 6)


def test_stretch_rounds_half_up() -> None:
    assert stretch(np.array([[10.0, 11.0, 12.0]])).tolist() == [[0, 128, 255]]
    assert not stretch(np.full((2, 2), 9.0)).any()


def test_gray_is_weighted_and_rounded() -> None:
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]], np.uint8)
    assert to_gray_plane(image).tolist() == [[76, 150, 29, 9]]
    assert to_color_planes(image).shape == (3, 1, 4)
    assert to_color_planes(image[:, 3:]).shape == (1, 1, 1)


def test_gray_and_its_color_copy_score_the_same(triple: Triple) -> None:
    gray = [plane.astype(np.uint8) for plane in triple(50, 50)]
    color = [np.repeat(plane[..., None], 3, 2) for plane in gray]
    metrics = [metric for name in ("evaluator", "vifb", "survey") for metric in metrics_of(name)]
    alone, mixed = score(*gray, metrics), score(gray[0], color[1], color[2], metrics)
    for metric in metrics:
        assert mixed[metric] == pytest.approx(alone[metric], nan_ok=True), metric.label


def test_16_bit_scores_like_8_bit(triple: Triple) -> None:
    gray = [plane.astype(np.uint8) for plane in triple(50, 50)]
    deep = [plane.astype(np.uint16) * 257 for plane in gray]
    alone, together = score(*gray), score(*deep)
    for metric, value in alone.items():
        assert together[metric] == pytest.approx(value), metric.name


def test_vif_of_a_image_with_more_contrast_exceeds_one(triple: Triple) -> None:
    a, _, _ = triple(64, 64)
    low = np.round(100 + (a - 100) / 2)
    assert visual.visual_information_fidelity(low, low, a) > 2
