from functools import partial

import pytest
import torch
from torch import nn

from biasnb import embed, measure, model
from biasnb.config import MIXERS, Config
from biasnb.mixing import OPERATORS

STATS = (torch.full((3,), 120.0), torch.full((3,), 60.0))


def network(**fields):
    return model.build(Config(**{"width": 16, "heads": 4, "depth": 2, "kernel": 3, **fields}), STATS)


def operator(name, **fields):
    return network(mixer=name, depth=1, **fields).blocks[0].mix


def test_every_mixer_of_the_config_has_an_operator():
    assert list(MIXERS) == list(OPERATORS)


@pytest.mark.parametrize("name", ["convmixer", "conv_dense"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("position", [(4, 4), (0, 0), (7, 3)])
def test_a_convolution_reads_its_kernel_and_nothing_else(name, kernel, position):
    seen = measure.footprint(operator(name, kernel=kernel), 8, 16, position) > 0
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    reach = kernel // 2
    window = ((rows - position[0]).abs() <= reach) & ((columns - position[1]).abs() <= reach)
    assert torch.equal(seen, window)


@pytest.mark.parametrize("name", ["mixer", "igpt"])
@pytest.mark.parametrize("position", [(4, 4), (0, 0), (7, 3)])
def test_mixer_and_attention_read_everything(name, position):
    assert (measure.footprint(operator(name), 8, 16, position) > 0).all()


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


@pytest.mark.parametrize(("name", "commutes"), [("convmixer", True), ("conv_dense", True), ("mixer", False)])
def test_convolution_commutes_with_shifts_away_from_the_border(name, commutes):
    mix = operator(name).double()
    x = torch.randn(2, 8, 8, 16, dtype=torch.float64)
    error = (mix(x.roll(1, 2)) - mix(x).roll(1, 2))[:, 2:-2, 3:-2].norm() / mix(x).norm()
    assert bool(error < 1e-12) is commutes


def test_block_equals_timms_vit_block():
    from timm.models.vision_transformer import Block

    ours = network(mixer="igpt").blocks[0]
    theirs = Block(16, 4, mlp_ratio=4, qkv_bias=False, proj_bias=False, norm_layer=partial(nn.RMSNorm, eps=model.EPS))
    with torch.no_grad():
        for mine, other in (
            (ours.norm1, theirs.norm1),
            (ours.norm2, theirs.norm2),
            (ours.mix.qkv, theirs.attn.qkv),
            (ours.mix.out, theirs.attn.proj),
            (ours.mlp.hidden, theirs.mlp.fc1),
            (ours.mlp.out, theirs.mlp.fc2),
        ):
            mine.weight.normal_()
            other.weight.copy_(mine.weight)
    x = torch.randn(2, 8, 8, 16)
    assert torch.allclose(ours(x).flatten(1, 2), theirs(x.flatten(1, 2)), rtol=1e-4, atol=1e-4)


def test_block_equals_timms_mixer_block():
    from timm.models.mlp_mixer import MixerBlock

    ours = network(mixer="mixer").blocks[0]
    theirs = MixerBlock(16, 64, mlp_ratio=(8, 4), norm_layer=partial(nn.RMSNorm, eps=model.EPS))
    assert theirs.mlp_tokens.fc1.weight.shape == ours.mix.hidden.weight.shape
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if name.endswith("bias"):
                p.zero_()
        for mine, other in (
            (ours.norm1, theirs.norm1),
            (ours.norm2, theirs.norm2),
            (ours.mix.hidden, theirs.mlp_tokens.fc1),
            (ours.mix.out, theirs.mlp_tokens.fc2),
            (ours.mlp.hidden, theirs.mlp_channels.fc1),
            (ours.mlp.out, theirs.mlp_channels.fc2),
        ):
            mine.weight.normal_(0, 0.2)
            other.weight.copy_(mine.weight)
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


@pytest.mark.parametrize("name", list(MIXERS))
@pytest.mark.parametrize("patch", [1, 2])
def test_flop_equals_the_formula(name, patch):
    cfg = Config(mixer=name, depth=3, width=32, heads=4, kernel=3, patch=patch, token_ratio=2, mlp_ratio=4)
    n, d, k, t = cfg.grid**2, cfg.width, cfg.kernel, cfg.token_ratio * cfg.grid**2
    mixing = {
        "convmixer": 2 * n * k * k * d + 2 * n * d * d,
        "mixer": 4 * n * t * d,
        "igpt": 8 * n * d * d + 4 * n * n * d,
        "conv_dense": 2 * n * k * k * d * d,
        "identity": 2 * n * d * d,
    }[name]
    ends = 2 * n * 3 * patch**2 * d * (1 + cfg.mask_rate)
    assert model.flop_per_image(model.build(cfg, STATS)) == cfg.depth * (mixing + 16 * n * d * d) + int(ends)


def test_features_are_token_means_at_every_depth(images):
    net = network(depth=3)
    f = model.features(net, images(4, 16))
    assert f.shape == (4, 4, 16)
    first = net.embed(net.encode(images(4, 16)))
    normed = first / (first.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
    assert torch.allclose(f[:, 0], normed.mean((1, 2)), atol=1e-5)


def test_initial_draws_are_scaled_to_the_fan_in():
    net = model.build(Config(width=256, depth=4, mixer="igpt"), STATS)
    block = net.blocks[0]
    assert block.mix.qkv.weight.std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert block.mlp.out.weight.std().item() == pytest.approx(1024**-0.5 / 2, rel=0.05)
    assert net.head.weight.abs().max() == 0
