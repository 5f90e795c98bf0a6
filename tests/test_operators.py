"""The operators: what they claim of themselves, measured; fast forms against the dense reference and literal loops."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from biasnb.config import Config, ConfigError
from biasnb.data.datasets import Data, Split
from biasnb.explore import checks as proof
from biasnb.networks import mixing, model
from biasnb.operators import CUBE, MIXERS, TRIO
from biasnb.training import loop as train

STATS = (torch.full((3,), 120.0), torch.full((3,), 60.0))
FORMS = {"zeros": {}, "circular": {"padding": "circular"}, "causal": {"pretext": "ar"}}
ORDERED = ("conv_two_stream",)  # puts pixels in an order: it has no form without one
UNORDERED = [name for name in MIXERS if name not in ORDERED]


def class_of(name):
    """The class behind a name (a function for operators that change with the layer)."""
    named = MIXERS[name].operator
    return getattr(mixing, named) if isinstance(named, str) else named


def has_matrix(name):
    """Whether Y = concat(A V) W_O is the whole operator, so that the product with its `matrix` says what it computes."""
    made = class_of(name)
    return hasattr(made, "matrix") and not issubclass(made, mixing.Hyena)


def in_forms(names):
    """(name, form), on the torus only where the operator knows it."""
    return [(m, f) for m in names for f in FORMS if f != "circular" or "padding" in Config(mixer=m).reads]


def network(mixer, grid=proof.GRID, **fields):
    """A network of `proof`, in float64: random weights, 3 x 3 windows, 12 channels, 3 heads, 3 blocks."""
    return proof.network(mixer, **{"image_size": 2 * grid, **fields})


def operator(mixer, grid=proof.GRID, layer=0, **fields):
    return network(mixer, grid, **fields).blocks[layer].mix


def tokens(grid=proof.GRID, seed=0, count=2):
    shape = (count, grid, grid, 12)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one, other, tolerance=1e-12):
    scale = max(1.0, float(other.detach().abs().max()))
    return bool((one - other).detach().abs().max() <= tolerance * scale)


# ---- the declared traits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", UNORDERED)
def test_the_traits_that_an_operator_declares_are_measured(mixer):
    """Shared ones and no others commute with rolls of the torus; local ones read their window, all others everything; static
    ones without an activation are linear; families that do not know neighbours are closed under permutation."""
    op, activation = MIXERS[mixer], hasattr(operator(mixer), "act")
    closed = mixer in ("igpt", "identity") or not (op.local or op.shared or op.frozen)
    for error, none in (
        (proof.roll_error(mixer), op.shared),
        (proof.nonlinearity(mixer), not op.dynamic and not activation),
        (proof.permuted_family(mixer), closed),
    ):
        assert error < 1e-12 if none else error > 0.01
    read = proof.positions_read(mixer)
    assert read <= 9 if op.local else read == 25


def test_the_only_activations_inside_operators_are_those_of_two_presets():
    assert [m for m in UNORDERED if hasattr(operator(m), "act")] == ["convmixer", "mixer"]


@pytest.mark.parametrize("mixer", ORDERED)
def test_an_operator_of_ordered_pixels_has_no_numbers_without_an_order(mixer):
    row = proof.row(mixer)
    names = ("roll error", "positions read", "nonlinearity", "permuted family")
    assert [row[name] for name in names] == [None] * 4
    assert row["future read"] == 0 and row["past read"] > 0.5


VARIANTS = {"plain": {}, "repeated": {"blocks": "repeated"}, "without skip": {"skip": "none"},
            "without positions": {"position": "none"}}  # fmt: skip
GATED = ("hyena", "hyena_hybrid")  # refused: they cannot start near the identity, and read nothing by a query of 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mixer", list(MIXERS))
def test_causal_networks_read_no_future_and_exactly_the_past_they_record(monkeypatch, mixer, variant):
    if (mixer, variant) == ("hyena_hybrid", "repeated"):
        pytest.skip("two kinds of block cannot be one block repeated")
    monkeypatch.setattr(proof, "network", functools.partial(proof.network, **VARIANTS[variant]))
    if mixer in GATED and variant in ("without skip", "without positions"):
        with pytest.raises(ConfigError, match=r"skip: 'none'|position: 'none'"):
            proof.raster(mixer)
        return
    future, past = proof.raster(mixer)  # raises unless `past` is the context_coverage
    assert future == 0
    assert past > 0.5 or mixer == "identity"


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("hidden", ["vector", "zero"])
@pytest.mark.parametrize("mixer", UNORDERED)
def test_also_without_positions_what_stands_for_a_hidden_token_lets_it_read_visible_ones(mixer, hidden, depth):
    if mixer in GATED and hidden == "zero":
        with pytest.raises(ConfigError, match="hidden: 'zero'"):
            network(mixer, hidden=hidden, depth=depth, position="none", pretext="bert")
        return
    net = network(mixer, hidden=hidden, depth=depth, position="none", pretext="bert")
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 10, 10, 3, generator=rng, dtype=torch.float64).requires_grad_()
    mask = torch.rand(2, 5, 5, generator=rng) < 0.5
    (gradient,) = torch.autograd.grad(net(x, mask)[mask].square().sum(), x)
    assert bool(gradient.any()) == (mixer != "identity")


# ---- the dense reference ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("grid", [4, 5])
@pytest.mark.parametrize(("mixer", "form"), in_forms([m for m in MIXERS if has_matrix(m)]))
def test_fast_forms_equal_the_product_with_the_matrix_and_so_do_their_gradients(mixer, form, grid, dtype, tolerance):
    net = network(mixer, grid, **FORMS[form]).to(dtype)
    for layer in (0, 1):
        mix = net.blocks[layer].mix.requires_grad_()
        x = tokens(grid).to(dtype).requires_grad_()
        query = tokens(grid, 1).to(dtype).requires_grad_() if form == "causal" and layer == 0 else None
        sources = [x, *mix.parameters()] + ([] if query is None else [query])
        fast, dense = mix(x, query), mix.join(mixing.Mix.apply_matrix(mix, x, query), x)
        assert close(fast, dense, tolerance)
        push = tokens(grid, 2).to(dtype)
        gradients = [torch.autograd.grad(y, sources, push, materialize_grads=True, allow_unused=True) for y in (fast, dense)]
        assert all(close(one, other, tolerance) for one, other in zip(*gradients, strict=True))


def literal_matrix(mixer, cfg, mix, x, query, strict):
    """(B or 1, G, N, N) entry by entry, from the table and the definitions of the cells."""
    op, side, n = MIXERS[mixer], cfg.grid, cfg.grid**2
    wide = cfg.kernel if op.local else side if cfg.circular else 2 * side - 1
    softmax = op.dynamic or mixer.startswith("static_softmax")
    heads, size = cfg.heads, cfg.width // cfg.heads
    if op.dynamic:
        asks = (x if query is None else query).flatten(1, 2) @ mix.query.weight.T
        keys = x.flatten(1, 2) @ mix.key.weight.T
    a = torch.zeros(len(x) if op.dynamic else 1, heads, n, n, dtype=x.dtype)
    for i in range(n):
        entries = {}
        for j in range(n):
            dy, dx = j // side - i // side, j % side - i % side
            if cfg.circular:
                dy, dx = ((d + side // 2) % side - side // 2 for d in (dy, dx))
            if (op.local and max(abs(dy), abs(dx)) > cfg.kernel // 2) or (cfg.causal and j > i - strict):
                continue
            score = torch.zeros(len(a), heads, dtype=x.dtype)
            if mix.table is not None:
                tap = (dy + wide // 2) * wide + dx + wide // 2 if op.local or op.shared else j
                score = score + mix.table.weight[:, 0 if op.shared else i, tap]
            if op.dynamic:
                products = (asks[:, i] * keys[:, j]).view(-1, heads, size)
                score = score + products.sum(2) / math.sqrt(size)
            entries[j] = score.exp() if softmax else score
        total = sum(entries.values()) if softmax else 1.0
        if cfg.causal and not softmax and not op.shared and entries:
            total = math.sqrt(len(entries) / (cfg.kernel**2 if op.local else n))  # the row keeps its variance
        for j, entry in entries.items():
            a[:, :, i, j] = entry / total
    return a


@pytest.mark.parametrize("grid", [4, 5])
@pytest.mark.parametrize(("mixer", "form"), in_forms([*CUBE, "igpt", "static_softmax", "static_softmax_shared"]))
def test_the_matrix_is_the_one_of_the_definition_entry_by_entry(mixer, form, grid):
    net = network(mixer, grid, **FORMS[form])
    for layer in (0, 1):
        mix, x = net.blocks[layer].mix, tokens(grid)
        query = tokens(grid, 1) if form == "causal" and layer == 0 else None
        strict = net.cfg.causal == "entry" and layer == 0
        tolerance = 1e-6 if form == "causal" else 1e-12  # the square roots that scale causal rows are kept in float32
        assert close(mix.matrix(x, query), literal_matrix(mixer, net.cfg, mix, x, query, strict), tolerance)


@pytest.mark.parametrize("mixer", ["full", "attn"])
def test_the_product_is_a_sum_over_positions_for_every_head(mixer):
    mix, x = operator(mixer, 4), tokens(4)
    a, v = mix.matrix(x).expand(2, -1, -1, -1), x.flatten(1, 2) @ mix.value.weight.T
    y = torch.zeros_like(v)
    for b in range(2):
        for i in range(16):
            for g in range(3):
                for j in range(16):
                    y[b, i, 4 * g : 4 * g + 4] += a[b, g, i, j] * v[b, j, 4 * g : 4 * g + 4]
    assert close(mix(x).flatten(1, 2), y @ mix.out.weight.T)


@pytest.mark.parametrize("form", FORMS)
def test_mean_averages_the_window_it_may_read(form):
    net = network("mean", **FORMS[form])
    for layer in (0, 1):
        mix = net.blocks[layer].mix
        (a,) = mix.matrix(tokens())[0]
        for row, allowed in zip(a, mix.allowed, strict=True):
            assert close(row, allowed / max(1, int(allowed.sum())))
        seen = [int(allowed.sum()) for allowed in mix.allowed]
        assert max(seen) == {"zeros": 9, "circular": 9, "causal": 4 + layer}[form]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grid", [4, 5])
def test_hyena_gates_a_global_convolution(form, grid):
    net = network("hyena", grid, **FORMS[form])
    for layer in (0, 1):
        mix, x = net.blocks[layer].mix, tokens(grid)
        query = tokens(grid, 1) if form == "causal" and layer == 0 else None
        a = literal_matrix("gconv", net.cfg, mix, x, None, strict=form == "causal" and layer == 0)[0]
        q = (x if query is None else query).flatten(1, 2) @ mix.query.weight.T
        k, v = (x.flatten(1, 2) @ w.weight.T for w in (mix.key, mix.value))
        y = torch.zeros_like(v)
        for i in range(grid**2):
            for j in range(grid**2):
                y[:, i] += a[:, i, j].repeat_interleave(4) * (k[:, j] * v[:, j])
        assert close(mix(x, query).flatten(1, 2), (q * y) @ mix.out.weight.T)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mixer", ["convmixer", "conv_dense"])
def test_convolutions_equal_the_loop_over_their_taps(mixer, form):
    net = network(mixer, **FORMS[form])
    for layer in (0, 1):
        mix, x, y = net.blocks[layer].mix, tokens(), torch.zeros_like(tokens())
        weight = (mix.depthwise if mixer == "convmixer" else mix.out).weight
        for row, column, r, c in torch.cartesian_prod(*[torch.arange(5)] * 2, *[torch.arange(3)] * 2).tolist():
            if form == "causal" and 3 * r + c > 4 - (layer == 0):
                continue
            i, j = row + r - 1, column + c - 1
            if form == "circular":
                i, j = i % 5, j % 5
            if 0 <= i < 5 and 0 <= j < 5:
                tap = weight[:, :, r, c]
                y[:, row, column] += x[:, i, j] * tap[:, 0] if mixer == "convmixer" else x[:, i, j] @ tap.T
        assert close(mix(x), F.gelu(y) @ mix.out.weight.T if mixer == "convmixer" else y)


# ---- between the cells --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_lowrank_of_rank_one_is_conv(form):
    for layer in (0, 1):
        conv, low = (operator(name, layer=layer, rank=1, **FORMS[form]) for name in ("conv", "lowrank"))
        assert low.combination.abs().min() > 0
        assert torch.equal(low.table.weight, conv.table.weight)
        assert close(low(tokens()), conv(tokens()))


@pytest.mark.parametrize("form", ["zeros", "circular"])
def test_lowrank_with_a_kernel_for_every_position_is_lc(form):
    lc, low = operator("lc", **FORMS[form]), operator("lowrank", rank=25, **FORMS[form])
    low.table.weight.copy_(lc.table.weight)
    low.combination.copy_(1e4 * torch.eye(25))
    assert close(low(tokens()), lc(tokens()))


@pytest.mark.parametrize("form", FORMS)
def test_lowrank_between_its_ends_is_neither_shared_nor_free(form):
    low = operator("lowrank", rank=2, layer=1, **FORMS[form])
    kernels = low.table.weight.view(3, 2, 9)
    a, shares = low.matrix(tokens())[0], low.combination.softmax(2)
    centre, above = a.diagonal(dim1=1, dim2=2), a[:, 5:].diagonal(dim1=1, dim2=2)  # taps (1, 1) and (0, 1)
    assert close(centre, torch.einsum("gir,gr->gi", shares, kernels[..., 4]))
    assert close(above, torch.einsum("gir,gr->gi", shares[:, 5:], kernels[..., 1]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("gate", "end"), [(-math.inf, "igpt"), (math.inf, "static_softmax_shared")])
def test_the_gate_of_convit_leads_from_attention_to_a_static_matrix(form, gate, end):
    for layer in (0, 1):
        gated, other = operator("convit", layer=layer, **FORMS[form]), operator("gattn", layer=layer, **FORMS[form])
        if end == "igpt":
            other.table.weight.zero_()  # attention without a table
        else:
            other = operator(end, layer=layer, **FORMS[form])
            assert torch.equal(gated.table.weight, other.table.weight)
        query = tokens(seed=1) if form == "causal" and layer == 0 else None
        gated.gate.fill_(gate)
        assert close(gated(tokens(), query), other(tokens(), query))
        gated.gate.zero_()
        assert not close(gated(tokens(), query), other(tokens(), query), 0.01)


@pytest.mark.parametrize("form", ["zeros", "causal"])
def test_attention_with_a_table_of_zeros_is_attention_without_one(form):
    mix = operator("attn", layer=1, **FORMS[form])
    mix.table.weight.zero_()
    assert close(mix(tokens()), operator("igpt", layer=1, **FORMS[form])(tokens()))


@pytest.mark.parametrize("form", ["zeros", "causal"])
def test_relative_positions_of_attention_are_the_table_of_gattn(form):
    relative = operator("igpt", layer=1, position="relative", **FORMS[form])
    assert close(relative(tokens()), operator("gattn", layer=1, **FORMS[form])(tokens()))


@pytest.mark.parametrize("form", FORMS)
def test_local_heads_read_their_window_only(form):
    fields = {"layer": 1, **FORMS[form]}
    narrow = operator("lattn", **fields)
    narrow.table.weight.zero_()
    assert close(operator("attn_local_heads", local_heads=3, **fields)(tokens()), narrow(tokens()))
    wide = operator("gattn", **fields)
    wide.table.weight.zero_()
    assert close(operator("attn_local_heads", local_heads=0, **fields)(tokens()), wide(tokens()))
    a = operator("attn_local_heads", local_heads=1, **fields).matrix(tokens())
    assert close(a[:, :1], narrow.matrix(tokens())[:, :1]) and close(a[:, 1:], wide.matrix(tokens())[:, 1:])
    assert torch.equal((a[0] > 0).sum(2).amax(1), torch.tensor([9 if form != "causal" else 5, 25, 25]))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_hybrid_has_hyena_in_its_first_half_and_attention_in_its_second(depth):
    net = model.build(Config(mixer="hyena_hybrid", depth=depth), STATS)
    kinds = [type(block.mix) for block in net.blocks]
    half = math.ceil(depth / 2)
    assert kinds == [mixing.Hyena] * half + [mixing.Attention] * (depth - half)
    assert all(block.mix.table is None for block in net.blocks[half:])


@pytest.mark.parametrize("mixer", [name for name, op in MIXERS.items() if op.frozen])
def test_frozen_twins_start_as_their_cells_and_keep_their_table(images, mixer):
    fields = {"image_size": 8, "width": 8, "heads": 2, "kernel": 3, "depth": 2, "steps": 5, "batch": 8, "colours": 8}
    split = Split(images(16, 8), torch.arange(16) % 4)
    data = Data("tiny", tuple("abcd"), split, split, split, split, "fingerprint")
    moved = {}
    for name in (mixer, mixer.removesuffix("_frozen")):
        cfg = Config(mixer=name, **fields)
        net = model.build(cfg, data.stats())
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        train.pretrain(cfg, data, net)
        after = dict(net.named_parameters())
        moved[name] = before, {n for n in before if not torch.equal(before[n], after[n])}, after
    (start, changed, after), (cell, all_changed, _) = moved.values()
    tables = {n for n in start if "table" in n}
    assert len(tables) == 2 and start.keys() == cell.keys()
    assert all(torch.equal(start[n], cell[n]) for n in start)
    assert all(after[n].grad is None for n in tables)
    assert all_changed == set(start)
    assert changed == set(start) - tables


# ---- the raster past ----------------------------------------------------------------------------------------------


def deep(mixer, depth, **fields):
    """A causal network as deep as wanted, its second block repeated."""
    net = model.build(Config(mixer=mixer, width=4, heads=1, patch=1, depth=2, pretext="ar", **fields), STATS)
    net.cfg = Config(**{**vars(net.cfg), "depth": depth})
    net.blocks = nn.ModuleList([net.blocks[0], *[net.blocks[1]] * (depth - 1)])
    return net


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("mixer", "masks"), [("mixer", ("reads", "read_by")), ("full", ("scale",)), ("lc", ("scale",))])
def test_causal_rows_without_weight_sharing_keep_their_variance(mixer, masks, layer):
    mix = operator(mixer, pretext="ar", layer=layer)
    for name in masks:
        variance = getattr(mix, name).square().sum(1)
        full = 9 if mixer == "lc" else getattr(mix, name).shape[1]
        assert close(variance[2:], full * torch.ones_like(variance[2:]), 1e-6)
        assert float(variance[0]) == (0 if layer == 0 and name != "read_by" else pytest.approx(full))  # no past


@pytest.mark.parametrize("skip", ["both", "none"])
@pytest.mark.parametrize("form", [{}, {"pretext": "ar"}, {"pretext": "ar", "blocks": "repeated"}])
def test_context_coverage_is_the_share_of_pairs_that_a_path_of_reads_joins(form, skip):
    net, rng = network("attn", 4, skip=skip, **form), torch.Generator().manual_seed(0)
    few = 0.25 if net.cfg.causal else 0.1
    for block in net.blocks:  # each reads a few of the positions it may, seldom itself
        block.mix.allowed = block.mix.allowed & (torch.rand(16, 16, generator=rng) < few)

    def pixels(i, layer):
        """The pixels that position i holds after so many blocks."""
        if layer == 0:
            return {i} if net.cfg.causal != "shift" else {i - 1} - {-1}
        sources = [j for j in range(16) if net.stack[layer - 1].mix.allowed[i, j]]
        sources += [i] if skip == "both" and not (net.cfg.causal == "entry" and layer == 1) else []
        return set().union(*(pixels(j, layer - 1) for j in sources))

    joined = sum(j < i or not net.cfg.causal for i in range(16) for j in pixels(i, 3))
    assert model.context_coverage(net) == pytest.approx(joined / (120 if net.cfg.causal else 256))
    assert 0 < model.context_coverage(net) < 0.9


@pytest.mark.parametrize(("kernel", "share"), [(3, 0.775), (5, 0.875), (9, 0.940)])
def test_stacked_causal_convolutions_have_a_blind_spot(kernel, share):
    coverage = model.context_coverage(deep("conv", 32, kernel=kernel, image_size=32))
    assert coverage == pytest.approx(share, abs=5e-4)
    seen = 0  # a row above widens the view to the right by kernel // 2, and to the left all is seen
    for i in range(1024):
        row, column = divmod(i, 32)
        seen += column + sum(min(32, column + kernel // 2 * up + 1) for up in range(1, row + 1))
    assert coverage == pytest.approx(seen / (1024 * 1023 / 2))


@pytest.mark.parametrize("kernel", [3, 5])
def test_two_streams_have_no_blind_spot(kernel):
    one, two = (model.context_coverage(deep(m, 8, kernel=kernel, image_size=8)) for m in ("conv", "conv_two_stream"))
    assert one < 0.93 and two == 1
    assert model.context_coverage(deep("conv", 24, kernel=kernel, image_size=8)) == one  # depth does not help


# ---- skip connections and repeated blocks -------------------------------------------------------------------------


@pytest.mark.parametrize("entered", [False, True])
@pytest.mark.parametrize(("skip", "across_positions", "across_channels"), [
    ("both", 1, 1), ("none", 0, 0), ("spatial", 1, 0), ("channel", 0, 1),
])  # fmt: skip
@pytest.mark.parametrize("mixer", TRIO)
def test_blocks_have_the_residual_connections_they_name(mixer, skip, across_positions, across_channels, entered):
    block, x = network(mixer, skip=skip).blocks[1], tokens()
    entry = tokens(seed=1) if entered else None
    own = x if entry is None else entry
    y = block.mix(block.norm1(x), None if entry is None else block.norm1(entry))
    u = across_positions * own + y
    expected = across_channels * u + block.mlp(block.norm2(u))
    assert close(block(x, entry), expected)


@torch.no_grad()
def branches(mixer, skip, **fields):
    """Mean cosine of tokens, normed and random, before and after each branch of a fresh block: (mix, mlp)."""
    settings = {"depth": 2, "width": 32, "kernel": 3, "pretext": "ar" if mixer in ORDERED else "bert", **fields}
    net = model.build(Config(mixer=mixer, skip=skip, **settings), STATS)
    x = torch.randn(8 * net.streams, 8, 8, 32, generator=torch.Generator().manual_seed(0))
    x, block = F.rms_norm(x, (32,)), net.blocks[1]
    return [float(F.cosine_similarity(branch(x), x, dim=3).mean()) for branch in (block.mix, block.mlp)]


LEAST = {"convmixer": 0.7}  # its activation keeps gelu(x), at best .77 like x
FAR = ("mean", "hyena", "hyena_hybrid")  # no weights make them the identity; the last two are refused


@pytest.mark.parametrize("ratio", [2, 4])
@pytest.mark.parametrize("pretext", ["bert", "ar"])
@pytest.mark.parametrize("mixer", TRIO)
def test_branches_without_skip_connection_start_near_the_identity(mixer, pretext, ratio):
    fields = {"mlp_ratio": ratio, "pretext": pretext}
    for skip in ("none", "spatial", "channel", "both"):
        positions, channels = branches(mixer, skip, **fields)
        if skip in ("none", "channel"):
            assert positions > LEAST.get(mixer, 0.9)
        else:
            assert abs(positions) < 0.2
        assert channels > 0.9 if skip in ("none", "spatial") else abs(channels) < 0.2


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name not in FAR])
def test_every_operator_that_can_starts_near_the_identity_without_skip_connections(mixer):
    assert branches(mixer, "none")[0] > LEAST.get(mixer, 0.9)


@pytest.mark.parametrize("mixer", TRIO)
@pytest.mark.parametrize("pretext", ["bert", "ar"])
def test_repeated_blocks_are_one_block_applied_again_and_again(images, mixer, pretext):
    cfg = Config(mixer=mixer, blocks="repeated", depth=3, width=16, image_size=8, kernel=3, pretext=pretext)
    net, out = model.build(cfg, STATS), {}
    x = net.encode(images(4, 8))
    with torch.no_grad():
        y = net(x, out=out)
        h = sum(net.embed(x))
        expected = [h]
        for _ in range(3):
            h = net.blocks[0](h)
            expected.append(h)
    assert torch.equal(y, net.norm(h))
    assert all(torch.equal(one, other) for one, other in zip(out["layers"], expected, strict=True))
    assert not torch.equal(expected[2], expected[3])
    once = model.parameters_by_part(model.build(Config(**{**vars(cfg), "depth": 1}), STATS))
    assert model.parameters_by_part(net) == once


@pytest.mark.parametrize("mixer", list(MIXERS))
def test_every_operator_runs_in_bf16(images, mixer):
    pretext = "ar" if mixer in ORDERED else "bert"
    net = model.build(Config(mixer=mixer, width=16, depth=2, image_size=8, kernel=3, pretext=pretext), STATS)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(net.encode(images(2, 8)))
    out.float().sum().backward()
    assert out.isfinite().all()
