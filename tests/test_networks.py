import math
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from timm.models.mlp_mixer import MixerBlock
from timm.models.vision_transformer import Block
from torch import nn

from biasnb.config import Config
from biasnb.data import palette
from biasnb.networks import embed, mixing, model
from biasnb.operators import MIXERS
from biasnb.records.keys import key
from biasnb.training import measures as measure

STATS = (torch.full((3,), 120.0), torch.full((3,), 60.0))


def network(**fields):
    task = {"pretext": "ar"} if fields.get("mixer") == "conv_two_stream" else {}
    return model.build(Config(**{"width": 16, "heads": 4, "depth": 2, "kernel": 3, **task, **fields}), STATS)


def operator(name, **fields):
    return network(mixer=name, depth=1, **fields).blocks[0].mix


@pytest.mark.parametrize("name", list(MIXERS))
def test_every_mixer_maps_a_grid_of_tokens_to_one_of_the_same_shape(images, name):
    net = network(mixer=name)
    blocks = [block.mix for block in net.blocks]
    made = getattr(mixing, MIXERS[name].operator)
    assert all(isinstance(mix, made if isinstance(made, type) else (mixing.Hyena, mixing.Attention)) for mix in blocks)
    y = net(net.encode(images(2, 16)))
    assert y.shape == (2, 8, 8, 16) and y.isfinite().all() and y.std() > 0.1


@pytest.mark.parametrize("name", ["convmixer", "conv_dense", "conv", "lc", "lattn", "lattn_abs", "mean", "lowrank"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("position", [(4, 4), (0, 0), (7, 3)])
def test_a_convolution_reads_its_kernel_and_nothing_else(name, kernel, position):
    seen = measure.footprint(operator(name, kernel=kernel), 8, 16, position) > 0
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    reach = kernel // 2
    window = ((rows - position[0]).abs() <= reach) & ((columns - position[1]).abs() <= reach)
    assert torch.equal(seen, window)


@pytest.mark.parametrize("position", [(4, 4), (0, 0), (7, 3)])
def test_identity_reads_only_itself(position):
    seen = measure.footprint(operator("identity"), 8, 16, position) > 0
    assert seen[position]
    assert int(seen.sum()) == 1


def permuted(x, order):
    return x.flatten(1, 2)[:, order].view(x.shape)


@pytest.mark.parametrize(("name", "commutes"), [("igpt", True), ("identity", True), ("mixer", False), ("convmixer", False)])
def test_attention_commutes_with_permutation_and_the_others_do_not(name, commutes):
    mix = operator(name).double()
    x = torch.randn(2, 8, 8, 16, dtype=torch.float64)
    order = torch.randperm(64)
    error = (mix(permuted(x, order)) - permuted(mix(x), order)).norm() / mix(x).norm()
    assert error < 1e-12 if commutes else error > 0.1


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["igpt", "mixer"])
def test_a_block_equals_that_of_timm(mixer):
    ours, norm = network(mixer=mixer).blocks[0], partial(nn.RMSNorm, eps=model.EPS)
    pairs = {"norm1.weight": ours.norm1, "norm2.weight": ours.norm2}
    if mixer == "igpt":
        theirs = Block(16, 4, mlp_ratio=4, qkv_bias=False, proj_bias=False, norm_layer=norm)
        pairs |= {"attn.proj.weight": ours.mix.out, "mlp.fc1.weight": ours.mlp.hidden, "mlp.fc2.weight": ours.mlp.out}
        parts = ours.mix.query, ours.mix.key, ours.mix.value
    else:
        theirs = MixerBlock(16, 64, mlp_ratio=(8, 4), norm_layer=norm)
        pairs |= {"mlp_tokens.fc1.weight": ours.mix.hidden, "mlp_tokens.fc2.weight": ours.mix.out}
        pairs |= {"mlp_channels.fc1.weight": ours.mlp.hidden, "mlp_channels.fc2.weight": ours.mlp.out}
    for p in ours.parameters():
        p.normal_(0, 0.2)
    for name, p in theirs.named_parameters():
        if name.endswith("bias"):
            p.zero_()
        else:
            p.copy_(pairs[name].weight if name in pairs else torch.cat([part.weight for part in parts]))
    x = torch.randn(2, 8, 8, 16)
    assert torch.allclose(ours(x).flatten(1, 2), theirs(x.flatten(1, 2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [1, 2, 4])
def test_unpatchify_undoes_patchify_and_a_token_is_a_square(p):
    x = torch.arange(2 * 8 * 8 * 3).view(2, 8, 8, 3)
    tokens = embed.patchify(x, p)
    assert torch.equal(embed.unpatchify(tokens, p), x)
    assert torch.equal(tokens[1, 0, 1], x[1, :p, p : 2 * p].flatten())


@pytest.mark.parametrize("p", [1, 2, 4])
def test_palette_content_equals_the_slow_loop_over_slots(p):
    content = embed.PaletteContent(p, 6, colours=5)
    nn.init.normal_(content.weight)
    ids = torch.randint(0, 5, (1, 8, 8))
    tokens = content(ids)
    weight = content.weight.view(p * p, 5, 6)
    expected = sum(weight[r * p + c, ids[0, 4 // p * p + r, c]] for r in range(p) for c in range(p))
    assert torch.allclose(tokens[0, 4 // p, 0], expected)


def test_networks_of_one_seed_start_equal_where_they_have_the_same_part():
    one, other = (dict(network(mixer=m, seed=3).named_parameters()) for m in ("convmixer", "igpt"))
    shared = [name for name in one if name in other and ".mix." not in name]
    assert "blocks.1.mlp.hidden.weight" in shared
    assert all(torch.equal(one[name], other[name]) for name in shared)
    assert not torch.equal(one["embed.position"], dict(network(seed=4).named_parameters())["embed.position"])


@pytest.mark.parametrize("name", list(MIXERS))
def test_parts_add_up_to_all_parameters(name):
    net = network(mixer=name)
    assert sum(model.parameters_by_part(net).values()) == sum(p.numel() for p in net.parameters())


def formulas(cfg, pairs, everything):
    """Operator -> FLOP of one image in the operators of three blocks, from the numbers of pairs of positions in a window and
    in all, that are computed or needed; of local operators that are computed in full, `dense` is what stands for the window."""
    n, d, g, k, t = cfg.grid**2, cfg.width, cfg.heads, cfg.kernel, cfg.token_ratio * cfg.grid**2
    project, mix, window = 4 * n * d * d, 2 * everything * d, 2 * pairs["conv"] * d  # V and output; A V in full; in a window
    dense, heads = 2 * pairs["dense"] * d, 2 * pairs["heads"] * d
    attention, hyena, kernels = 2 * project + 2 * mix, 2 * project + mix, 2 * g * n * cfg.rank * k * k
    return {
        "convmixer": 3 * (window + project // 2),
        "mixer": 3 * 4 * n * t * d,
        "conv_dense": 3 * window * d,
        "identity": 3 * project,
        **dict.fromkeys(("conv", "conv_frozen"), 3 * (project + window)),
        **dict.fromkeys(("gconv", "full", "gconv_frozen", "full_frozen"), 3 * (project + mix)),
        **dict.fromkeys(("lc", "lc_frozen", "mean"), 3 * (project + dense)),
        **dict.fromkeys(("static_softmax", "static_softmax_shared"), 3 * (project + mix)),
        "lowrank": 3 * (project + dense + kernels),  # combining kernels: once per batch, here of one image
        **dict.fromkeys(("igpt", "gattn", "attn", "convit"), 3 * attention),
        **dict.fromkeys(("lattn", "lattn_abs"), 3 * (2 * project + 2 * dense)),
        "attn_local_heads": 3 * (2 * project + 2 * heads),
        "hyena": 3 * hyena,
        "hyena_hybrid": 2 * hyena + attention,
    }


@pytest.mark.parametrize("name", [name for name in MIXERS if name != "conv_two_stream"])
@pytest.mark.parametrize(("patch", "padding"), [(1, "zeros"), (2, "zeros"), (2, "circular")])
def test_flop_equals_the_formula(name, patch, padding):
    cfg = Config(mixer=name, depth=3, width=32, heads=4, kernel=3, rank=5, patch=patch, padding=padding)
    n, d, taps = cfg.grid**2, cfg.width, 3 * cfg.grid if padding == "circular" and "padding" in cfg.reads else 3 * cfg.grid - 2
    near = taps**2  # pairs in windows of 3 x 3: a row of the grid has so many pairs in windows of 3
    ends = int(2 * n * 3 * patch**2 * d * (1 + cfg.mask_rate)) + 3 * 16 * n * d * d
    computed = formulas(cfg, {"conv": 9 * n, "dense": n * n, "heads": n * n}, n * n)[name]
    needed = formulas(cfg, {"conv": near, "dense": near, "heads": (near + 3 * n * n) // 4}, n * n)[name]
    net = model.build(cfg, STATS)
    assert model.flop_per_image_dense(net) == computed + ends
    assert model.flop_per_image(net) == needed + ends


def test_two_streams_compute_their_kernels_in_full_and_need_what_is_allowed():
    cfg = Config(mixer="conv_two_stream", pretext="ar", depth=2, width=32, kernel=3)
    net, n, d = model.build(cfg, STATS), cfg.grid**2, cfg.width
    ends, rest = 2 * n * 3 * 4 * d * 2, 2 * (2 * 16 * n * d * d + 2 * n * d * d + 4 * n * d * d)  # down, and out of two streams
    assert model.flop_per_image_dense(net) == ends + rest + 2 * 2 * n * (9 + 3) * d
    rows, row, past = 2 * 8 - 1, 3 * 8 - 2, 8 - 1  # pairs of rows at most one apart and not below; of columns; one to the left
    vertical, first, second = rows * row, 8 * past, 8 * (past + 8)
    assert model.flop_per_image(net) == ends + rest + 2 * d * (2 * vertical + first + second)


@pytest.mark.parametrize("name", ["igpt", "gattn", "full", "mixer", "conv", "lc", "conv_dense"])
def test_of_the_future_no_flop_are_needed(name):
    cfg = Config(mixer=name, pretext="ar", depth=2, width=32, heads=4, kernel=3)
    net, n, d, t = model.build(cfg, STATS), cfg.grid**2, cfg.width, cfg.token_ratio
    past = [n * (n + 1) // 2] * 2 if name == "igpt" else [n * (n - 1) // 2, n * (n + 1) // 2]
    above_and_left = 7 * 22 + 8 * 7  # of windows of 3 x 3: the row above and the token to the left
    spared = {
        **dict.fromkeys(("igpt", "gattn"), 2 * (2 * n * n - sum(past))),
        "full": 2 * n * n - sum(past),
        "mixer": 4 * n * n * t - (past[0] + 3 * past[1]) * t,  # hidden units read as many as they may, and are read alike
        "conv": 2 * 9 * n - (2 * above_and_left + n),
        "lc": 2 * n * n - (2 * above_and_left + n),
        "conv_dense": (2 * 9 * n - (2 * above_and_left + n)) * d,
    }[name]
    assert model.flop_per_image_dense(net) - model.flop_per_image(net) == 2 * d * spared


def test_local_cells_need_as_many_flop_whether_weights_are_shared_or_not():
    conv, lc, lattn, lattn_abs = (model.flop_per_image(network(mixer=m)) for m in ("conv", "lc", "lattn", "lattn_abs"))
    assert conv == lc and lattn == lattn_abs
    assert lc < model.flop_per_image(network(mixer="full")) and lattn < model.flop_per_image(network(mixer="attn"))


@pytest.mark.parametrize(("pretext", "vectors"), [("bert", 32), ("ar", 64), ("denoise", 64), ("supervised", 1), ("none", 0)])
def test_flop_counts_the_head_where_the_task_needs_it(pretext, vectors):
    cfg = Config(pretext=pretext, mixer="identity", width=16)
    net = model.build(cfg, STATS, classes=7)
    outputs = 7 if pretext == "supervised" else 12
    without = model.flop_per_image(model.build(replace(cfg, pretext="none"), STATS))
    assert model.flop_per_image(net) - without == 2 * vectors * 16 * outputs


def test_features_are_token_means_at_every_depth(images):
    net = network(depth=3)
    f = model.features(net, images(4, 16))
    assert f.shape == (4, 4, 16)
    first = sum(net.embed(net.encode(images(4, 16))))
    normed = first / (first.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
    assert torch.allclose(f[:, 0], normed.mean((1, 2)), atol=1e-5)


@pytest.mark.parametrize("kind", ["pixels", "patches", "in_patch"])
def test_features_of_permuted_images_are_those_of_images_permuted_beforehand(images, kind):
    net, plain = network(permute=kind), network()
    x = images(4, 16)
    assert torch.equal(model.features(net, x), model.features(plain, net.arrange(x)))
    assert not torch.allclose(model.features(net, x), model.features(plain, x), atol=0.01)


@pytest.mark.parametrize(("mixer", "name", "std"), [
    ("igpt", "mix.query.weight", 256**-0.5),
    ("igpt", "mix.value.weight", 256**-0.5),
    ("igpt", "mix.out.weight", 256**-0.5 / 2),
    ("igpt", "mlp.hidden.weight", 256**-0.5),
    ("igpt", "mlp.out.weight", 1024**-0.5 / 2),
    ("conv", "mix.table.weight", 1 / 5),
    ("lc", "mix.table.weight", 1 / 5),
    ("gconv", "mix.table.weight", 1 / 8),
    ("full_frozen", "mix.table.weight", 1 / 8),
    ("hyena", "mix.table.weight", 1 / 8),
    ("attn", "mix.table.weight", 0.02),
    ("lattn", "mix.table.weight", 0.02),
    ("static_softmax", "mix.table.weight", 1.0),
    ("convit", "mix.table.weight", 1.0),
    ("lowrank", "mix.table.weight", ((2 + np.e - 1) / np.e) ** 0.5 / 5),  # so that a mean of two kernels varies like one
    ("lowrank", "mix.combination", 1.0),
    ("convmixer", "mix.depthwise.weight", 1 / 5),
    ("conv_dense", "mix.out.weight", 1 / (5 * 16 * 2)),
    ("mixer", "mix.hidden.weight", 1 / 8),
    ("mixer", "mix.out.weight", 128**-0.5 / 2),
])  # fmt: skip
def test_initial_draws_are_scaled_to_the_fan_in_or_as_the_operator_says(mixer, name, std):
    net = model.build(Config(width=256, heads=64, kernel=5, depth=4, mixer=mixer), STATS)
    parameter = net.blocks[0].get_parameter(name)
    assert parameter.std().item() == pytest.approx(std, rel=0.06)
    assert abs(parameter.mean().item()) < 0.1 * std


def test_positions_are_half_as_large_as_contents_and_the_head_starts_at_zero():
    for form in ({"mixer": "igpt"}, {"mixer": "igpt", "pretext": "ar"}, {"position": "sinusoid"}):
        net = model.build(Config(width=256, **form), STATS)
        assert net.embed.position.square().mean().sqrt().item() == pytest.approx(0.5, rel=0.02)
        content, _ = net.embed(torch.randn(64, 16, 16, 3))
        assert content.std().item() == pytest.approx(1.0, rel=0.06)
        assert net.head.weight.abs().max() == 0
        assert (net.embed.start is None) == (net.cfg.pretext != "ar")
        if net.embed.start is not None:
            assert net.embed.start.std().item() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("p", [1, 2, 4])
def test_palette_contents_start_as_large_as_rgb_contents(images, p):
    x = images(8, 16)
    net = model.build(Config(width=256, patch=p, input="palette", colours=8), STATS, palette.fit(x, 8))
    assert net.embed.content(net.encode(x)).std().item() == pytest.approx(1.0, rel=0.06)


def test_gates_start_open_for_both_and_norms_at_one():
    parameters = dict(network(mixer="convit").named_parameters())
    ones = [name for name, p in parameters.items() if (p == 1).all()]
    assert ones == [name for name in parameters if "norm" in name or name.endswith("gate")]
    assert len(ones) == 7


@pytest.mark.parametrize("width", [16, 18])
def test_sinusoids_equal_the_slow_loop(width):
    waves = network(position="sinusoid", width=width, heads=2).embed.position
    quarter = math.ceil(width / 4)
    for row in range(8):
        for column in range(8):
            angles = [[place / 10_000 ** (i / quarter) for i in range(quarter)] for place in (row, column)]
            vector = [f(a) / 2**0.5 for part in angles for f in (math.sin, math.cos) for a in part]
            assert torch.allclose(waves[row, column], torch.tensor(vector[:width]), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("position", "blind"), [("none", True), ("learned", False), ("sinusoid", False), ("relative", False)])
def test_only_attention_without_positions_cannot_tell_tokens_apart(images, position, blind):
    net = network(mixer="igpt", position=position, patch=1, image_size=8).double()
    x = net.encode(images(2, 8)).double()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    error = (net(permuted(x, order)) - permuted(net(x), order)).norm() / net(x).norm()
    assert error < 1e-12 if blind else error > 0.001


@pytest.mark.parametrize("position", ["none", "sinusoid"])
def test_fixed_positions_have_no_parameters(position):
    names = [name for name, _ in network(position=position).named_parameters()]
    assert "embed.content.weight" in names and "embed.position" not in names
    assert not any("position" in name for name in network(position=position).state_dict())


@pytest.mark.parametrize("pretext", ["bert", "ar", "denoise", "supervised", "none"])
def test_runs_of_one_key_have_weights_of_one_shape(pretext):
    shapes = {}
    for target, colours in product(("rgb", "palette"), (8, 9)):
        cfg = Config(pretext=pretext, target=target, colours=colours)
        head = model.build(cfg, STATS, classes=5).head.weight
        shapes.setdefault(key(cfg), set()).add(tuple(head.shape))
    assert len(shapes) == (3 if pretext in ("bert", "ar", "denoise") else 1)
    assert all(len(found) == 1 for found in shapes.values())


def test_the_norm_is_rms_norm_with_its_first_and_second_derivatives_also_over_seeds():
    rng = torch.Generator().manual_seed(0)
    x, gain, v = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((3, 2, 4, 8), (3, 8), (3, 2, 4, 8)))

    def plain(x, gain):
        return torch.nn.functional.rms_norm(x, (8,), gain, model.EPS)

    def ours(x, gain):
        return model.Normalised.apply(x, gain)[0]

    found = []
    for norm in (ours, plain):
        inputs = x.clone().requires_grad_(), gain.clone().requires_grad_()
        y = torch.stack([norm(*pair) for pair in zip(*inputs, strict=True)])
        first = torch.autograd.grad((y * v).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        found.append([y, *first, *second])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(torch.func.vmap(ours)(x, gain), found[1][0])
