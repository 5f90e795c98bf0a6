import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from torch import nn

from biasnb.config import Config
from biasnb.data import palette
from biasnb.data.datasets import Split
from biasnb.networks import model
from biasnb.operators import CUBE, MIXERS, TRIO
from biasnb.training import measures as measure

STATS = (torch.full((3,), 120.0), torch.full((3,), 60.0))
TORUS = {"padding": "circular", "position": "none"}


def network(**fields):
    cfg = Config(**{"image_size": 8, "patch": 1, "width": 16, "heads": 4, "depth": 2, "kernel": 3, "batch": 16, **fields})
    colours = palette.fit(smooth(20, cfg.image_size), 8) if cfg.uses_palette else None
    return model.build(cfg, STATS, colours)


def smooth(n, size, seed=0):
    """(n, S, S, 3) uint8 images that change slowly."""
    coarse = torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    fine = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (255 * fine).byte().permute(0, 2, 3, 1)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Grids(nn.Module):
    """A network whose token grids are given."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = layers

    def arrange(self, images):
        return images

    encode = arrange

    def forward(self, x, mask, out):
        out["layers"] = self.layers


class Matrix(nn.Module):
    """An operator with given mixing matrices (G, N, N)."""

    def __init__(self, a):
        super().__init__()
        self.register_buffer("a", a)

    def matrix(self, x):
        return self.a[None]

    def forward(self, x):
        return (self.a.mean(0) @ x.flatten(1, 2)).view_as(x)


class Hidden(nn.Module):
    """An operator that does not tell its matrix."""

    def __init__(self, mix):
        super().__init__()
        self.mix = mix

    def forward(self, x):
        return self.mix(x)


def mixing_distance(mix, images, **fields):
    net = network(depth=1, **fields)
    net.blocks[0].mix = mix
    return measure.mixing_distance(net, images)[0]


# ---- equivariance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("mixer", [*TRIO, *CUBE, "conv_dense"])
def test_on_the_torus_without_positions_shared_networks_and_no_others_commute_with_rolls(images, mixer, patch):
    free = measure.roll_error(network(mixer=mixer, patch=patch, **TORUS), images(4, 8))
    assert len(free) == 3 and (max(free) < 1e-5 if MIXERS[mixer].shared else free[-1] > 1e-3)
    placed = measure.roll_error(network(mixer=mixer, patch=patch, padding="circular"), images(4, 8))
    assert min(placed) > 0.01


@torch.no_grad()
def test_roll_error_is_that_of_the_definition(images):
    net, x = network(mixer="attn", patch=2), images(3, 8)
    grids, rolled = (measure.observe(net, net.encode(y))[0] for y in (x, x.roll((2, 4), (1, 2))))
    h, expected = grids[-1], rolled[-1]
    ratios = [float((b - a.roll((1, 2), (0, 1))).norm() / a.norm()) for a, b in zip(h, expected, strict=True)]
    assert measure.roll_error(net, x)[-1] == pytest.approx(np.mean(ratios), rel=1e-5)


def test_random_positions_raise_the_lie_error_of_a_convolution():
    x = smooth(8, 32)
    free = measure.lie_error(network(mixer="convmixer", image_size=32, **TORUS), x)
    placed = measure.lie_error(network(mixer="convmixer", image_size=32, padding="circular"), x)
    assert free[0] < 1e-10
    assert all(10 * a < b for a, b in zip(free, placed, strict=True))


def shifted(x, t, dim):
    """x sampled t places further along a dimension, |t| < 1, by Keys' cubic interpolation, reflected at the border."""
    n = x.shape[dim]
    start = int(np.floor(t))
    u = t - start
    weights = (-u / 2 + u**2 - u**3 / 2, 1 - 2.5 * u**2 + 1.5 * u**3, u / 2 + 2 * u**2 - 1.5 * u**3, (u**3 - u**2) / 2)
    at = torch.arange(n) + start
    around = [(n - 1 - (n - 1 - (at + k).abs()).abs()).abs() for k in (-1, 0, 1, 2)]
    return sum(w * x.index_select(dim, i) for w, i in zip(weights, around, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("fields", [{"mixer": "convmixer"}, {"mixer": "attn", "patch": 2}, {"mixer": "igpt", "pretext": "ar"}])
def test_lie_error_agrees_with_finite_differences(images, fields):
    net, t = network(**fields).double(), 1e-6
    x, p = net.encode(images(3, 8)), net.cfg.patch
    errors = np.zeros(3)
    for dim in (1, 2):
        ends = [[shifted(h, -s / p, dim) for h in measure.observe(net, shifted(x, s, dim))[0]] for s in (t, -t)]
        for layer, (h, a, b) in enumerate(zip(measure.observe(net, x)[0], *ends, strict=True)):
            ratio = ((a - b) / (2 * t)).square().sum((1, 2, 3)) / h.square().sum((1, 2, 3))
            errors[layer] += float(ratio.mean()) / 2
    assert measure.lie_error(net, images(3, 8)) == pytest.approx(errors.tolist(), rel=1e-5)


def test_palette_indices_have_no_lie_error(images):
    assert measure.lie_error(network(input="palette", colours=8), images(2, 8)) is None


# ---- receptive field ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("input", ["rgb", "palette"])
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
def test_one_convolution_sees_its_window_only(images, input, patch, kernel):
    net = network(mixer="conv_dense", depth=1, patch=patch, kernel=kernel, input=input, colours=8)
    field = measure.receptive_field(net, images(4, 8))
    seen = torch.zeros(8, 8, dtype=torch.bool)
    low, high = (net.cfg.grid // 2 - kernel // 2) * patch, (net.cfg.grid // 2 + kernel // 2 + 1) * patch
    seen[low:high, low:high] = True
    assert torch.equal(field["map"] > 0, seen)
    assert float(field["map"].sum()) == pytest.approx(1)
    assert field["side50"] <= field["side99"] <= kernel * patch
    assert kernel > 1 or field["side50"] == patch


def test_receptive_field_of_a_known_map():
    net = network(mixer="mean", depth=1, image_size=7, skip="none", kernel=3, position="none")
    for branch in (net.blocks[0].norm1, net.blocks[0].mlp, net.blocks[0].norm2):
        branch.forward = lambda x: x
    field = measure.receptive_field(net, smooth(2, 7))
    assert torch.allclose(field["map"][2:5, 2:5], torch.full((3, 3), 1 / 9))
    assert (field["side50"], field["side99"]) == (3, 3)
    assert field["distance"] == pytest.approx((4 + 4 * 2**0.5) / 9, rel=1e-5)


@pytest.mark.parametrize("mixer", ["conv", "igpt", "mixer", "conv_two_stream"])
@pytest.mark.parametrize("input", ["rgb", "palette"])
def test_autoregression_sees_the_past_only(images, mixer, input):
    net = network(mixer=mixer, pretext="ar", patch=2, input=input, colours=8)
    field = measure.receptive_field(net, images(4, 8))["map"]
    future = torch.arange(16).view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1) >= 10
    assert not field[future].any() and float(field.sum()) == pytest.approx(1)


def test_a_network_that_reads_nothing_has_no_receptive_field(images):
    field = measure.receptive_field(network(mixer="identity", pretext="ar"), images(2, 8))
    assert field["side99"] == field["distance"] == float(field["map"].sum()) == 0


# ---- mixing distance ----------------------------------------------------------------------------------------------


def test_the_identity_mixes_over_no_distance(images):
    assert mixing_distance(Matrix(torch.eye(64)[None]), images(3, 8)) == [0]
    assert mixing_distance(Hidden(Matrix(torch.eye(64)[None])), images(3, 8)) == [0]


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_a_uniform_matrix_mixes_over_the_uniform_distance(images, padding):
    place = np.indices((8, 8)).reshape(2, -1).T
    apart = np.abs(place[:, None] - place[None])
    if padding == "circular":
        apart = np.minimum(apart, 8 - apart)
    expected = np.linalg.norm(apart, axis=2).mean()
    assert measure.uniform_distance(8, padding == "circular") == pytest.approx(expected, rel=1e-6)
    assert mixing_distance(Matrix(torch.full((1, 64, 64), -1 / 64)), images(3, 8), padding=padding) == pytest.approx([expected])


def test_a_shift_by_one_mixes_over_one_token_per_head(images):
    left = torch.zeros(64, 64)
    for i in range(64):
        if i % 8:
            left[i, i - 1] = 2.0  # rows of the first column stay empty and are skipped
    both = torch.stack([left, left.T, torch.zeros(64, 64)])
    assert mixing_distance(Matrix(both), images(3, 8)) == pytest.approx([1, 1, 0])
    ring = torch.eye(64).view(8, 8, 64).roll(1, 1).view(1, 64, 64)
    assert mixing_distance(Matrix(ring), images(3, 8), padding="circular") == pytest.approx([1])


def test_attention_distance_is_the_mean_over_images_and_queries(images):
    net, x = network(mixer="attn", depth=1), images(3, 8)
    block, (h, _) = net.blocks[0], measure.observe(net, net.encode(x))[0]
    a, distance = block.mix.matrix(block.norm1(h)), measure.distances(8)
    expected = torch.einsum("bgij,ij->g", a, distance) / (3 * 64)
    assert measure.mixing_distance(net, x)[0] == pytest.approx(expected.tolist(), rel=1e-5)


def test_content_distance_leaves_out_the_table_of_positions(images):
    net, x = network(mixer="attn", depth=1), images(3, 8)
    for table in (0.0, 9.0):
        net.blocks[0].mix.table.weight.data.mul_(0).add_(table * torch.eye(64))  # each token reads itself
        block, (h, _) = net.blocks[0], measure.observe(net, net.encode(x))[0]
        a, distance = block.mix.content(block.norm1(h)).softmax(-1), measure.distances(8)
        expected = torch.einsum("bgij,ij->g", a, distance) / (3 * 64)
        assert measure.content_distance(net, x)[0] == pytest.approx(expected.tolist(), rel=1e-5)
        whole = measure.mixing_distance(net, x)[0]
        assert whole == pytest.approx(expected.tolist(), rel=1e-5) if not table else max(whole) < 0.5 * min(expected)
    igpt = network(mixer="igpt")
    assert measure.content_distance(igpt, x) == measure.mixing_distance(igpt, x), "without a table content is all"
    assert measure.content_distance(network(mixer="full"), x) is None


@pytest.mark.parametrize("fields", [{}, {"pretext": "ar"}, TORUS])
def test_the_jacobian_finds_every_row_of_the_matrix_of_a_linear_operator(fields):
    for layer in (0, 1):
        mix = network(mixer="full", heads=1, **fields).blocks[layer].mix
        expected = mix.matrix(None)[0, 0].double().abs()
        found = measure.jacobian_rows(mix, (normal(3, 8, 8, 16),), 3)
        assert found.shape == (3, 64, 64) and found.dtype == torch.float64
        assert torch.allclose(F.normalize(found, p=1, dim=2), F.normalize(expected, p=1, dim=1).expand(3, -1, -1), rtol=1e-5)
        for i in (0, 27, 63):
            row = measure.block_norms(mix, (normal(3, 8, 8, 16),), divmod(i, 8)).flatten()
            assert torch.allclose(F.normalize(row, p=1, dim=0), F.normalize(expected[i], p=1, dim=0), rtol=1e-5)


def test_the_mixing_distance_by_the_jacobian_is_that_by_the_matrix(images):
    for mixer in ("full", "lc"):
        net, x = network(mixer=mixer, depth=1, heads=1), images(8, 8)
        known = measure.mixing_distance(net, x)[0]
        net.blocks[0].mix = Hidden(net.blocks[0].mix)
        assert measure.mixing_distance(net, x)[0] == pytest.approx(known, rel=1e-3)


def test_random_signs_estimate_the_norms_of_the_jacobian_in_every_row():
    mix = network(mixer="convmixer", width=32).blocks[0].mix
    x = normal(1, 8, 8, 32).expand(4, -1, -1, -1)
    estimate = measure.jacobian_rows(mix, (x,), 4).square().mean(0).sqrt()
    exact = torch.stack([measure.block_norms(mix, (x,), divmod(i, 8)).flatten() for i in range(64)])
    assert estimate.shape == (64, 64) and torch.equal(estimate > 0, exact > 0)
    assert float((estimate - exact).norm() / exact.norm()) < 0.25


def test_an_operator_that_computes_in_float32_alone_is_measured_all_the_same():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.half = nn.Linear(16, 16, bias=False), 0.5 * torch.eye(16)  # a constant, no buffer

        def forward(self, x):
            return self.linear(x.roll(1, 2)) @ self.half

    rows = measure.jacobian_rows(Halves(), (normal(2, 8, 8, 16),), 2)
    expected = torch.eye(64).view(64, 8, 8).roll(-1, 2).flatten(1)  # position i reads the one before it in its row
    assert torch.equal((rows > 0).float(), expected.expand(2, -1, -1))


def test_rows_of_large_grids_take_fewer_images_and_of_two_streams_the_last_is_read():
    large = network(mixer="convmixer", image_size=20)
    assert measure.jacobian_rows(large.blocks[0].mix, (normal(3, 20, 20, 16),), 3).shape == (1, 400, 400)
    net, grids = network(mixer="conv_two_stream", pretext="ar", depth=1), normal(6, 8, 8, 16)
    found = measure.jacobian_rows(net.blocks[0].mix, (grids, grids), 3)
    assert found.shape == (3, 64, 64)
    for i in (0, 20, 63):
        exact = measure.block_norms(net.blocks[0].mix, (grids, grids), divmod(i, 8)).flatten()
        assert torch.equal(found[2, i] > 0, exact > 0)


# ---- spectrum -----------------------------------------------------------------------------------------------------


def test_white_noise_has_a_flat_spectrum():
    (curve,) = measure.spectrum(Grids(normal(64, 16, 16, 32)), torch.zeros(1))
    assert curve == pytest.approx([0] + 7 * [np.log(2) / 2] + [0], abs=0.06)


def test_the_spectrum_of_a_low_passed_map_falls():
    noise = normal(16, 16, 16, 8)
    k = torch.fft.fftfreq(16) * 16
    gain = torch.exp(-(k[:, None] ** 2 + k**2) / 8)[..., None]
    low = torch.fft.ifft2(torch.fft.fft2(noise, dim=(1, 2)) * gain, dim=(1, 2)).real
    flat, curve = measure.spectrum(Grids(noise, low), torch.zeros(1))
    assert (np.diff(curve)[1:] < 0).all()
    assert np.subtract(curve, flat)[:5] == pytest.approx([-(k**2) / 4 for k in range(5)], abs=0.02)


def test_the_spectrum_of_a_mixing_sub_block_is_that_of_the_block_without_its_mlp(images):
    for mixer in ("igpt", "conv"):
        net, x = network(mixer=mixer), images(4, 8)
        for block in net.blocks:
            block.mlp.out.weight.data.zero_()
        ends = [curve[-1] for curve in measure.spectrum(net, x)]
        assert measure.mixing_spectrum(net, x) == pytest.approx(np.diff(ends).tolist(), abs=1e-6)
    repeated = network(mixer="igpt", blocks="repeated")
    assert len(measure.mixing_spectrum(repeated, images(4, 8))) == 2


def test_averaging_tokens_is_low_pass_and_differences_are_high_pass(images):
    for centre, around, sign in ((1.0, 1.0, -1), (1.0, -1.0, 1)):
        a = centre * torch.eye(64)
        for i in range(64):
            for step in (1, 8):
                a[i, (i + step) % 64] += around * 0.25
                a[i, (i - step) % 64] += around * 0.25
        net = network(depth=1)
        net.blocks[0].mix = Matrix(a[None])
        (change,) = measure.mixing_spectrum(net, images(8, 8))
        assert sign * change > 0.1


def test_the_spectrum_ignores_scale_and_fits_odd_grids():
    h = normal(4, 7, 7, 8)
    one, other = measure.spectrum(Grids(h, 100 * h), torch.zeros(1))
    assert len(one) == 4 and one == pytest.approx(other, abs=1e-5)


# ---- CKA ----------------------------------------------------------------------------------------------------------


def cka(one, other, **options):
    """Of (n, F) and (n, F') features."""
    return float(measure.cka_matrix(one[None], other[None], **options))


def features(n, width, seed=0):
    return normal(n, width, seed=seed).double()


def test_cka_of_a_representation_with_itself_is_one_whatever_its_rotation_and_scale():
    x = features(40, 10)
    rotation, _ = torch.linalg.qr(features(10, 10, 1))
    assert cka(x, x) == pytest.approx(1)
    assert cka(x, 7 * x @ rotation + 3) == pytest.approx(1)
    assert cka(x.float(), x @ features(10, 10, 2)) < 0.95


def test_cka_of_unrelated_features_is_zero_on_average():
    values = [cka(features(16, 64, 2 * s), features(16, 32, 2 * s + 1)) for s in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5
    assert min(values) < 0 < max(values)


def hsic(x, y):
    """The unbiased estimator as Song et al. write it (JMLR 13, 2012)."""
    n, one = len(x), np.ones(len(x))
    k, m = (a @ a.T * (1 - np.eye(n)) for a in (x.numpy(), y.numpy()))
    total = np.trace(k @ m) + one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ m @ one
    return total / (n * (n - 3))


def test_cka_averages_the_unbiased_hsic_over_batches():
    x, y = features(30, 5), features(30, 5)[:, :3] + features(30, 3, 1)
    parts = list(zip(x.split(10), y.split(10), strict=True))
    xy, xx, yy = (np.mean([hsic(*pick(a, b)) for a, b in parts])
                  for pick in (lambda a, b: (a, b), lambda a, b: (a, a), lambda a, b: (b, b)))  # fmt: skip
    assert cka(x, y, batch=10) == pytest.approx(xy / (xx * yy) ** 0.5)
    assert cka(x, y) == pytest.approx(hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5)
    assert cka(x, y) == cka(x, y, batch=30)
    assert cka(x, y, batch=28) == cka(x[:28], y[:28])  # two images have no unbiased HSIC


def test_cka_between_layers_of_two_networks(images):
    one, other, x = network(depth=2), network(depth=1, seed=1), images(16, 8)
    own, across = measure.cka_layers(one, x), measure.cka_layers(one, x, other)
    assert own.shape == (3, 3) and across.shape == (3, 2)
    assert torch.allclose(own.diagonal(), torch.ones(3).double()) and torch.allclose(own, own.T)
    expected = cka(model.features(one, x)[:, 2].detach(), model.features(other, x)[:, 1].detach())
    assert float(across[2, 1]) == pytest.approx(expected)


# ---- LogME and transfer -------------------------------------------------------------------------------------------


def labelled(n, width, seed=0):
    y = torch.arange(n) % 3
    return features(n, width, seed) + 1.5 * features(3, width, 99)[y], y


def evidence(x, y):
    """Largest log evidence of y = x w + noise over both precisions, per image, by brute force."""

    def negative(logs):
        alpha, beta = np.exp(logs)
        return -multivariate_normal(cov=x @ x.T / alpha + np.eye(len(x)) / beta).logpdf(y) / len(x)

    starts = [(0.0, 0.0), (4.0, 2.0), (-2.0, 3.0)]
    return -min(
        minimize(negative, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}).fun for start in starts
    )


@pytest.mark.parametrize("width", [4, 30])
def test_logme_is_the_maximum_of_the_evidence(width):
    x, y = labelled(24, width)
    expected = np.mean([evidence(x.numpy(), (y == c).numpy().astype(float)) for c in range(3)])
    assert measure.logme(x, y, 3) == pytest.approx(expected, abs=1e-6)
    assert measure.logme(x.float(), y, 5) == pytest.approx(expected, abs=1e-5)  # classes without an image do not count


def test_logme_ranks_features_by_what_they_tell():
    x, y = labelled(120, 8)
    noise = features(120, 8, 5)
    values = [measure.logme(z, y, 3) for z in (noise, x + 4 * noise, x + noise, x)]
    assert values == sorted(values)


def test_logme_is_finite_for_features_that_tell_all_or_nothing():
    y = torch.arange(30) % 3
    for x in (torch.zeros(30, 4), torch.ones(30, 4), F.one_hot(y).float()):
        assert np.isfinite(measure.logme(x, y, 3))


def test_transfer_probes_another_data_set():
    def split(n, seed):
        y = torch.arange(n) % 2
        noise = torch.randint(0, 100, (n, 8, 8, 3), generator=torch.Generator().manual_seed(seed))
        return Split((noise + 100 * y[:, None, None, None] * torch.tensor([1, 0, 0])).byte(), y)

    data = SimpleNamespace(train=split(60, 0), val=split(20, 1), test=split(40, 2), classes=("grey", "red"))
    result = measure.transfer(network(), data)
    assert result["test"] == 1 and len(result["logme_layers"]) == 3 and result["logme"] == max(result["logme_layers"])


# ---- all together -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [
    {"mixer": "convmixer"}, {"mixer": "mixer", "skip": "none"}, {"mixer": "igpt", "pretext": "ar"}, {"mixer": "hyena", **TORUS},
    {"mixer": "lattn", "pretext": "ar"}, {"mixer": "conv", "blocks": "repeated"}, {"mixer": "conv_two_stream", "pretext": "ar"},
    {"mixer": "lc", "input": "palette", "colours": 8}, {"mixer": "full", "permute": "pixels"},
])  # fmt: skip
def test_every_network_is_measured(images, fields):
    net = network(patch=2, **fields)
    measures, field = measure.network(net, images(40, 8))
    assert json.loads(json.dumps(measures, allow_nan=False)) == measures
    shapes = {name: np.shape(measures[name]) for name in ("roll_error", "spectrum", "cka")}
    assert shapes == {"roll_error": (3,), "spectrum": (3, 3), "cka": (3, 3)}
    assert len(measures["mixing_distance"]) == len(measures["mixing_spectrum"]) == 2
    assert (measures["content_distance"] is None) == (not MIXERS[net.cfg.mixer].dynamic or net.cfg.mixer == "hyena")
    assert (measures["lie_error"] is None) == (net.cfg.input == "palette")
    assert field.shape == (8, 8) and field.dtype == np.float32
    again, same = measure.network(net, measure.spread(images(40, 8), 32))
    assert np.array_equal(same, field)
    assert {name for name in measures if again[name] != measures[name]} == {"cka"}, "CKA alone takes more than 32 images"


def test_measuring_leaves_a_network_as_it_was(images):
    net = network()
    before = {name: p.clone() for name, p in net.state_dict().items()}
    with torch.no_grad():
        measure.network(net, images(8, 8))
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
