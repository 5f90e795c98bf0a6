"""Measurements of the biases of each operator, with random weights in float64 on a small token grid. They do not use the traits
in `operators.MIXERS`; tests compare the two."""

import torch

from ..config import BiasnbError, Config, ConfigError
from ..data.datasets import generator
from ..networks.model import build, context_coverage
from ..operators import MIXERS
from ..training.loop import threads

GRID, WINDOW = 5, 9  # tokens per side; tokens of the window
STATS = torch.full((3,), 128.0), torch.full((3,), 64.0)


def network(mixer, scale=0.5, seed=0, **fields):
    """Return a network of the operator on 5 x 5 tokens, 12 channels, 3 heads, 3 x 3 windows, with random normal weights."""
    settings = {"width": 12, "heads": 3, "kernel": 3, "depth": 3, "image_size": 2 * GRID, "patch": 2, "local_heads": 1}
    net = build(Config(mixer=mixer, **{**settings, **fields}), STATS).double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.normal_(0, scale, generator=generator("cpu", seed, "proof", name))
    return net.requires_grad_(False)


def tokens(seed, count=16):
    shape = (count, GRID, GRID, 12)
    return torch.randn(shape, generator=generator("cpu", seed, "tokens"), dtype=torch.float64)


def distance(one, other):
    """Return the relative distance |one - other| / |other|."""
    return float((one - other).norm() / other.norm())


def roll_error(mixer, shift=(1, 2)):
    """Measure weight sharing: |F(T x) - T F(x)| / |F(x)| on the torus, with T a roll by whole tokens. Sharing gives 0."""
    mix = network(mixer, padding="circular").blocks[0].mix
    x = tokens(1)
    return distance(mix(x.roll(shift, (1, 2))), mix(x).roll(shift, (1, 2)))


def positions_read(mixer):
    """Measure locality: the number of the N positions on which the output at the centre depends."""
    mix, x = network(mixer).blocks[0].mix, tokens(2).requires_grad_()
    centre = mix(x)[:, GRID // 2, GRID // 2]
    (gradient,) = torch.autograd.grad(centre.square().sum(), x)
    return int((gradient.abs().sum((0, 3)) > 0).sum())


def nonlinearity(mixer):
    """Measure input dependence: |F(x + y) - F(x) - F(y)| / |F(x + y)|. It is 0 if A does not depend on the input and the
    operator contains no activation."""
    mix = network(mixer).blocks[0].mix
    x, y = tokens(3), tokens(4)
    return distance(mix(x) + mix(y), mix(x + y))


def permuted_family(mixer, steps=40):
    """Measure closure under a permutation P of tokens: min over weights w' of |F_w'(P x) - P F_w(x)| / |F_w(x)|. It is 0 if the
    family of operators has no information about which positions are neighbours.

    The search starts from w with every axis of length N permuted by P, and continues with L-BFGS over all trained weights."""
    order = torch.randperm(GRID**2, generator=generator("cpu", 0, "order"))
    mix, other = (network(mixer).blocks[0].mix for _ in range(2))
    x = tokens(5)
    permuted = x.flatten(1, 2)[:, order].view_as(x)
    wanted = mix(x).flatten(1, 2)[:, order].view_as(x)
    free = [p for name, p in other.named_parameters() if not (MIXERS[mixer].frozen and "table" in name)]
    with torch.no_grad():
        for p in free:
            for axis, size in enumerate(p.shape):
                if size == len(order):
                    p.copy_(p.index_select(axis, order))
    optimizer = torch.optim.LBFGS([p.requires_grad_() for p in free], max_iter=steps, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (other(permuted) - wanted).square().sum() / wanted.square().sum()
        loss.backward()
        return loss

    start = distance(other(permuted).detach(), wanted)
    if start < 1e-12:
        return start
    optimizer.step(closure)
    return min(start, distance(other(permuted).detach(), wanted))


def raster(mixer):
    """Return (future, past) of the causal form with three blocks: the largest derivative of an output by its own or later
    pixels relative to the largest of all, and the fraction of earlier tokens with a non-zero derivative. Raises BiasnbError
    unless that fraction equals the `context_coverage` that runs record."""
    net, n = network(mixer, pretext="ar"), GRID**2
    x = torch.randn(4, 2 * GRID, 2 * GRID, 3, generator=generator("cpu", 6), dtype=torch.float64).requires_grad_()
    out = net(x).flatten(1, 2)
    rows = [torch.autograd.grad(out[:, i].square().sum(), x, retain_graph=True)[0] for i in range(n)]
    reads = torch.stack([row.abs().sum((0, 3)).view(GRID, 2, GRID, 2).sum((1, 3)).flatten() for row in rows])
    past = float((reads.tril(-1) > 0).sum() / (n * (n - 1) / 2))
    if not hasattr(net.blocks[0].mix, "allowed"):
        raise BiasnbError(f"{mixer}: its class has no buffer `allowed` that says what may be read; register one, (N, N)")
    said = context_coverage(net)
    if abs(past - said) > 1e-6:
        raise BiasnbError(
            f"{mixer}: reads {past:.3g} of the past, its `allowed` says {said:.3g}; correct `allowed` or what it reads"
        )
    return float(reads.triu().max() / reads.max().clamp(min=1e-300)), past


@threads(1)  # several threads are slower for matrices of this size
def row(mixer):
    """Return all measurements of an operator; None for those that do not apply to it."""
    op = MIXERS[mixer]
    found = {name: getattr(op, name) for name in ("local", "shared", "dynamic")}
    measures = {"roll error": roll_error, "positions read": positions_read, "nonlinearity": nonlinearity,
                "permuted family": permuted_family}  # fmt: skip
    for name, measure in measures.items():
        try:
            found[name] = measure(mixer)
        except ConfigError:  # the operator supports autoregression only
            found[name] = None
    found["future read"], found["past read"] = raster(mixer)
    return found


def agrees(found):
    """Return the names of the declared traits that the measurements in a `row` contradict; "yes" if there are none."""
    contradicted = []
    if found["roll error"] is not None:
        if found["shared"] != (found["roll error"] < 1e-12):
            contradicted.append("shared")
        if found["local"] and found["positions read"] > WINDOW:
            contradicted.append("local")
        if found["dynamic"] and found["nonlinearity"] <= 1e-12:
            contradicted.append("dynamic")
    if found["future read"]:
        contradicted.append("causal")
    return ", ".join(contradicted) or "yes"


def markdown():
    """Return the table of all operators as Markdown."""
    rows = {mixer: row(mixer) for mixer in MIXERS}
    columns = next(iter(rows.values()))
    lines = [
        "# Operators and their biases, measured",
        "",
        "This page shows which biases each mixing operator has. `biasnb proofs` writes it: every number is measured with "
        f"random weights in float64, on {GRID} x {GRID} tokens with 12 channels, 3 heads and windows of 3 x 3 tokens. A **●** "
        "is what [operators.py](../biasnb/operators.py) declares of the operator, and the tests compare it with the numbers.",
        "",
        "The first three operators are the presets of the paper's Figure 1, and the next eight are the cells of the cube of "
        "locality, weight sharing and input dependence. The controls do not depend on the input "
        "(`static_softmax`), are not trained (the frozen variants of the static cells), or have nothing to learn (`identity`, "
        "`mean`). The others lie between cells: a low rank between shared and free weights (`lowrank`), attention that starts "
        "as convolution (`convit`), long convolutions with gates (`hyena`), and attention with some heads local "
        "(`attn_local_heads`).",
        "",
        "- **roll error** is the relative change if the torus is rolled before the operator and not after it; 0 with shared "
        "weights.",
        f"- **positions read** is the number of the {GRID**2} positions on which the output depends (derivative not exactly "
        "0). A local operator reads at most the 9 positions of its window.",
        "- **nonlinearity** is the relative failure of F(x + y) = F(x) + F(y); 0 without input dependence and activations.",
        "- **permuted family** says how closely the operator, with other weights, can reproduce its own output on permuted "
        "tokens, as a relative error; 0 means that it cannot tell which positions are neighbours.",
        "- **future read** is the largest derivative of a causal network of three blocks by the pixel that is predicted or a "
        "later one; it must be exactly 0.",
        "- **past read** is the share of all earlier pixels that such a network reads; it is below 1 with a blind spot.",
        "",
        "| operator | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    lines += [f"| `{mixer}` | " + " | ".join(map(cell, found.values())) + " |" for mixer, found in rows.items()]
    return "\n".join(lines) + "\n"


def cell(value):
    """Format a trait as ● or ○, and a number with two digits, or as 'rounding' if it is below 1e-12 but not exactly 0."""
    if value is None or isinstance(value, bool):
        return {None: "—", True: "●", False: "○"}[value]
    return "rounding" if 0 < value < 1e-12 else f"{value:.2g}"
