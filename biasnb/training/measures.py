"""Measures of an operator or a network: equivariance, receptive field, mixing distance, spectrum and similarity of features.

Throughout, x is the encoded images (the input of the network), h^0 ... h^L are its token grids before any normalisation, and
S, p and H are the side of the image in pixels, of a token in pixels and of the grid in tokens. Lengths are in pixels, except
mixing distances, which are in tokens."""

import copy

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..data.datasets import generator
from ..networks.model import features, per_pass
from ..networks.positions import masked_softmax
from ..records.sweep import choose
from .evaluation import layer_features, probe_network
from .pretext import spread

TINY = 1e-12
FEW = 32  # images for all measures except CKA


def footprint(mix, grid, width, position=None, generator=None):
    """Return the `block_norms` (H, W) of an operator for random normal input at a position (row, column), or at the centre."""
    return block_norms(mix, (torch.randn(1, grid, grid, width, generator=generator),), position or (grid // 2, grid // 2))


def block_norms(mix, arguments, position):
    """Return the norms (H, W) float64 of the Jacobian blocks of an operator's output at a position (row, column) by input
    position, exactly zero where nothing is read. If streams are stacked along B, the output is that of the last stream and the
    norms cover the inputs of all."""
    mix, arguments = in_double(mix, arguments)
    x = arguments[0].requires_grad_()
    with torch.enable_grad():
        outputs = mix(x, *arguments[1:])[-1][position]
    (jacobian,) = torch.autograd.grad(outputs, x, torch.eye(len(outputs), device=x.device), is_grads_batched=True)
    return jacobian.square().sum((0, 1, 4)).sqrt()


def in_double(mix, arguments):
    """Return (copy of an operator, its arguments) in float64, because float32 rounding would make equal rows differ. Both stay
    unchanged if a user-defined operator cannot be copied or cannot compute in float64."""
    try:
        double, converted = copy.deepcopy(mix).double(), [x.detach().double() for x in arguments]
        double(*converted)
        return double, converted
    except (RuntimeError, TypeError):
        return mix, [x.detach() for x in arguments]


def encoded(model, images):
    return model.encode(model.arrange(images))


def observe(model, x, watch=(), mask=None):
    """Run the network on encoded images and a mask. Returns ([h^0 ... h^L], calls), where calls lists (module, arguments,
    output) of every call of a module in `watch`."""
    out, calls = {}, []
    hooks = [module.register_forward_hook(lambda *call: calls.append(call)) for module in set(watch)]
    try:
        model(x, mask, out=out)
    finally:
        for hook in hooks:
            hook.remove()
    return out["layers"], calls


def signs(shape, device):
    """Return random signs s, equal on every device. E|s^T J|^2 is the squared Frobenius norm of J (Hutchinson), so one backward
    pass replaces one per channel."""
    draws = torch.randint(0, 2, shape, generator=generator("cpu", 0, "signs", *shape))
    return (2.0 * draws - 1).to(device)


@torch.no_grad()
def rolled(model, images, shift, mask=None):
    """Return per layer (h(T x) - T h(x), T h(x)), both (B, H, W, D). T rolls images and mask circularly by `shift` tokens
    (rows, columns)."""
    x = encoded(model, images)
    still = [h.roll(shift, (1, 2)) for h in observe(model, x, mask=mask)[0]]
    mask = None if mask is None else mask.roll(shift, (1, 2))
    moved, _ = observe(model, x.roll([model.cfg.patch * s for s in shift], (1, 2)), mask=mask)
    return [(other - h, h) for other, h in zip(moved, still, strict=True)]


def roll_error(model, images, shift=(1, 2)):
    """Return |h(T x) - T h(x)| / |h(x)| per layer, averaged over images, with T as in `rolled`."""
    pairs = [(error.flatten(1).norm(dim=1), h.flatten(1).norm(dim=1)) for error, h in rolled(model, images, shift)]
    return [float((error / size.clamp(min=TINY)).mean()) for error, size in pairs]


def slope(x, dim):
    """Return d/dt at t = 0 of x shifted by t positions, by central differences; 0 at the border, where x is reflected."""
    change = (x.roll(-1, dim) - x.roll(1, dim)) / 2
    change.select(dim, 0).zero_()
    change.select(dim, -1).zero_()
    return change


def lie_error(model, images):
    """Return the local equivariance error per layer, |d/dt T_-t h(T_t x) at t = 0|^2 / |h(x)|^2 per squared pixel of shift,
    averaged over images and over shifts along rows and columns (Gruver et al., arXiv 2210.02984). None for input "palette".

    T_t shifts x by t pixels and h by t / p tokens, so by the chain rule the derivative is J slope(x) - slope(h) / p. The
    Jacobian product takes two backward passes, because fused attention has no forward mode.

    # DEVIATION: the bilinear shift of the source is not differentiable at t = 0. Its one-sided difference is off by half a
    pixel in x, but by half a token in h. Central differences, which belong to a shift by Keys' cubic interpolation, are not
    off in either."""
    x = encoded(model, images)
    if not x.is_floating_point():
        return None
    errors = [0.0] * (model.cfg.depth + 1)
    for part in x.split(max(1, 2**20 // model.cfg.grid**4)):  # the graph of attention stores several N x N matrices
        part.requires_grad_()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            hidden, _ = observe(model, part)
            probes = [torch.zeros_like(h, requires_grad=True) for h in hidden]
            (pulled,) = torch.autograd.grad(hidden, part, probes, create_graph=True)
        for dim in (1, 2):
            tangent = slope(part.detach(), dim)
            pushed = torch.autograd.grad(pulled, probes, tangent, retain_graph=True, materialize_grads=True)
            for layer, (h, jx) in enumerate(zip(hidden, pushed, strict=True)):
                error = jx - slope(h.detach(), dim) / model.cfg.patch
                ratio = error.square().sum((1, 2, 3)) / h.detach().square().sum((1, 2, 3)).clamp(min=TINY)
                errors[layer] += float(ratio.sum()) / (2 * len(x))
    return errors


def sensitivity(model, images, position, mask=None):
    """Return the effective receptive field of the token at `position` (row, column) of h^L (Luo et al., arXiv 1701.04128) as
    (S, S) float64 on the CPU with sum 1, or all 0 if nothing is read.

    It is the mean over images of |s^T dh/dx| at each pixel, with random signs s over channels and the norm over colours. For
    input "palette", x is the embedded content of each token, and its value is spread evenly over the pixels of the token."""
    cfg, x = model.cfg, encoded(model, images)
    soft = x.is_floating_point()
    with torch.enable_grad():
        hidden, calls = observe(model, x.requires_grad_(soft), [model.embed.content], mask)
        token = hidden[-1][:, position[0], position[1]]
    (gradient,) = torch.autograd.grad(token, x if soft else calls[0][2], signs(token.shape, x.device))
    field = gradient.double().norm(dim=3).mean(0).cpu()
    if not soft:
        field = field.repeat_interleave(cfg.patch, 0).repeat_interleave(cfg.patch, 1)
    return field / field.sum().clamp(min=TINY)


def receptive_field(model, images):
    """Return the `sensitivity` of the token at (H // 2, H // 2) as "map", and its extent in pixels.

    "side50" and "side99" are the sides of the smallest squares around the token that contain 50 % and 99 % of the map, up to
    S + p, because no token is at the centre of an even grid. "distance" is the mean distance from the centre of the token. All
    are 0 if nothing is read."""
    cfg = model.cfg
    field = sensitivity(model, images, (cfg.grid // 2, cfg.grid // 2))
    offset = torch.arange(cfg.image_size) - (cfg.grid // 2 + 0.5) * cfg.patch + 0.5
    side = 2 * torch.maximum(offset.abs()[:, None], offset.abs()) + 1  # of the smallest square that contains the pixel
    side = side.long().clamp(min=cfg.patch).flatten()
    held = torch.zeros(cfg.image_size + cfg.patch + 1, dtype=torch.float64).index_add(0, side, field.flatten()).cumsum(0)
    sides = {f"side{percent}": int((held < percent / 100 * held[-1]).sum()) for percent in (50, 99)}
    return {"map": field.float(), **sides, "distance": float((field * torch.hypot(offset[:, None], offset)).sum())}


def distances(grid, circular=False):
    """Return the Euclidean distances (N, N) between tokens, in tokens; on the torus if circular."""
    apart = (torch.arange(grid)[:, None] - torch.arange(grid)).abs()
    if circular:
        apart = torch.minimum(apart, grid - apart)
    return torch.hypot(apart[:, None, :, None].float(), apart[None, :, None, :].float()).view(grid**2, grid**2)


def uniform_distance(grid, circular=False):
    """Return the mixing distance of the uniform matrix, in tokens, a reference value for `mixing_distance`."""
    return float(distances(grid, circular).mean())


def mean_distance(weights, distance):
    """Return the weighted mean distance per row, averaged over rows: non-negative weights (..., rows, N) and distances ->
    (...). Rows of zeros are skipped; the result is 0 if all rows are zero."""
    total = weights.sum(-1)
    used = total > 0
    rows = (weights * distance).sum(-1) / total.where(used, 1.0)
    return rows.sum(-1) / used.sum(-1).clamp(min=1)


@torch.no_grad()
def mixing_row(model, images, position, layer, head=None, mask=None):
    """Return the row (H, W) of |A| of block `layer` (1 to L) for the token at `position` (row, column) of the last image,
    averaged over heads if `head` is None. For an operator without a `matrix`, return its `block_norms`."""
    mixes = [block.mix for block in model.stack]
    mix, arguments, _ = observe(model, encoded(model, images), mixes, mask)[1][layer - 1]
    if not hasattr(mix, "matrix"):
        return block_norms(mix, arguments, position)
    grid = model.cfg.grid
    rows = mix.matrix(*arguments)[-1, :, position[0] * grid + position[1]].abs()
    return (rows.mean(0) if head is None else rows[head]).view(grid, grid)


@torch.no_grad()
def mixing_distance(model, images):
    """Return the mixing distance in tokens, a list over heads per layer: (1/N) sum_ij |A_ij| |p_i - p_j| with rows of |A|
    normalised to sum 1, averaged over images, and with distances on the torus if the operator is circular.

    For attention it is the attention distance (Dosovitskiy et al., arXiv 2010.11929, section 4.5). An operator without a
    `matrix` counts as one head with |A_ij| from `jacobian_rows`, for the first four images (fewer for large grids)."""
    _, calls = observe(model, encoded(model, images), [block.mix for block in model.stack])
    distance, result = distances(model.cfg.grid, model.cfg.circular).to(images.device), []
    for mix, arguments, _ in calls:
        if hasattr(mix, "matrix"):
            result.append(distance_by_head(mix.matrix, arguments, distance))
        else:
            weights = jacobian_rows(mix, arguments, len(images))
            result.append(mean_distance(weights[:, None], distance).double().mean(0).tolist())
    return result


@torch.no_grad()
def content_distance(model, images):
    """Return the `mixing_distance` of attention by content alone, softmax(q_i . k_j / sqrt(d)) over the allowed j, without the
    position table. None unless all layers are attention."""
    _, calls = observe(model, encoded(model, images), [block.mix for block in model.stack])
    distance, result = distances(model.cfg.grid, model.cfg.circular).to(images.device), []
    for mix, arguments, _ in calls:
        if not hasattr(mix, "content"):
            return None

        def weights(*part, mix=mix):
            return masked_softmax(mix.content(*part), mix.allowed)

        result.append(distance_by_head(weights, arguments, distance))
    return result


def distance_by_head(matrix, arguments, distance):
    """Return the mean distance per head of |A|, A = matrix(*arguments), averaged over images."""
    chunk = max(1, 2**22 // len(distance) ** 2)
    parts = zip(*(x.split(chunk) for x in arguments), strict=True)
    means = torch.cat([mean_distance(matrix(*part).abs(), distance) for part in parts])
    return means.double().mean(0).tolist()


def jacobian_rows(mix, arguments, b):
    """Return |A_ij| of an operator at its actual input, (n, N, N) float64: norms of the Jacobian blocks as in `block_norms`,
    estimated with random signs, for the first n of its b images. n is 4, and down to 1 for large grids."""
    mix, arguments = in_double(mix, arguments)
    _, height, width, channels = arguments[0].shape
    tokens = height * width
    n = min(b, max(1, min(4, 2**20 // (tokens**2 * channels))))
    arguments = [x.unflatten(0, (-1, b))[:, :n].flatten(0, 1) for x in arguments]  # streams are stacked along B
    x = arguments[0].requires_grad_()
    with torch.enable_grad():
        outputs = mix(x, *arguments[1:])[-n:].flatten(1, 2)  # (n, N, D)
    draws, found = signs(outputs.shape, x.device).to(x.dtype), []
    for row in range(tokens):
        picks = torch.zeros_like(outputs)
        picks[:, row] = draws[:, row]
        (gradient,) = torch.autograd.grad(outputs, x, picks, retain_graph=True)
        found.append(gradient.unflatten(0, (-1, n)).square().sum((0, 4)).sqrt().flatten(1))  # (n, N)
    return torch.stack(found, 1)


@torch.no_grad()
def spectrum(model, images):
    """Return the delta log amplitude per layer (Park & Kim, arXiv 2202.06709): the natural logarithm of |2-D Fourier transform
    of h| at frequencies (k, k), k = 0 ... H // 2 (2 pi k / H per token), minus that at k = 0, averaged over images and
    channels. White noise gives 0 at both ends, where the transform is real, and ln(2) / 2 = .35 in between."""
    return [log_amplitude(h) for h in observe(model, encoded(model, images))[0]]


def log_amplitude(h):
    """Return the curve of `spectrum` for one token grid (B, H, W, D), as a list."""
    amplitude = torch.fft.fft2(h, dim=(1, 2)).abs().clamp(min=1e-6)
    curve = amplitude.log().double().mean((0, 3)).diagonal()[: h.shape[1] // 2 + 1]
    return (curve - curve[0]).tolist()


@torch.no_grad()
def mixing_spectrum(model, images):
    """Return per layer the change of the last value of `spectrum` by the mixing sub-block, including its skip connection. The
    sub-block is low-pass below 0 and high-pass above 0 (Park & Kim, arXiv 2202.06709, figure 8)."""
    blocks = set(model.stack)
    _, calls = observe(model, encoded(model, images), [*blocks, *(block.norm2 for block in blocks)])
    before = [arguments[0] for module, arguments, _ in calls if module in blocks]
    after = [arguments[0] for module, arguments, _ in calls if module not in blocks]
    return [log_amplitude(u)[-1] - log_amplitude(x)[-1] for x, u in zip(before, after, strict=True)]


# ---- features compared with other layers and networks (CKA), and with labels of another data set (LogME, transfer) ------


def centred_gram(x):
    """Map features (A, n, F) to U-centred linear kernels (A, n*n) (Szekely & Rizzo, arXiv 1310.2926). The inner product of two
    kernels divided by n(n - 3) is the unbiased HSIC of Song et al. (JMLR 13, 2012)."""
    n = x.shape[1]
    off = 1 - torch.eye(n, dtype=x.dtype, device=x.device)
    gram = x @ x.mT * off
    means = gram.sum(2) / (n - 2)
    total = means.sum(1)[:, None, None] / (n - 1)
    return ((gram - means[:, :, None] - means[:, None, :] + total) * off).flatten(1)


def cka_matrix(ones, others, batch=256):
    """Map features (A, n, F) and (B, n, F') of the same n >= 4 images to linear CKA (A, B). The unbiased HSIC is averaged over
    batches of images (Nguyen et al., arXiv 2010.15327; a last batch of fewer than four is left out). Unrelated features give
    values near 0 of either sign; constant features give 0."""
    cross, one, other = 0, 0, 0
    for x, y in zip(ones.double().split(batch, 1), others.double().split(batch, 1), strict=True):
        if (n := x.shape[1]) >= 4:
            k, m = (centred_gram(part) / (n * (n - 3)) ** 0.5 for part in (x, y))
            cross, one, other = cross + k @ m.T, one + k.square().sum(1), other + m.square().sum(1)
    return cross / (one[:, None] * other).sqrt().clamp(min=TINY)


@torch.no_grad()
def cka_layers(model, images, other=None):
    """Return the CKA (L + 1, L' + 1) between the layers of two networks, or of one network with itself, on the features of
    `networks.model.features`, which are also probed."""
    found = []
    for network in [model] if other is None else [model, other]:
        parts = images.split(per_pass(network.cfg, images.device))
        found.append(torch.cat([features(network, part) for part in parts]).transpose(0, 1))
    return cka_matrix(found[0], found[-1])


def logme(x, labels, classes):
    """Return LogME, the logarithm of the maximum evidence per image in nats (You et al., arXiv 2102.11005), of features (n, F)
    and labels (n,). Higher values mean that a linear model on the features predicts the labels better.

    Each class has a Gaussian linear model without offset on 0/1 targets; its prior and noise precisions alpha and beta are at
    the fixed point of the evidence. The result is the mean over classes that occur. Squared residuals are at least 1e-5."""
    y = F.one_hot(labels, classes).double()
    y = y[:, y.any(0)]
    n = len(y)
    u, s, _ = torch.linalg.svd(x.double(), full_matrices=False)
    power, s = (u.T @ y).square(), s.square()[:, None]
    outside = (y.square().sum(0) - power.sum(0)).clamp(min=0)
    alpha = beta = torch.ones_like(outside)
    for _ in range(1000):
        ratio = (alpha / beta).clamp(1e-10, 1e10)
        effective = (s / (s + ratio)).sum(0)  # effective number of parameters
        weight = (s * power / (s + ratio).square()).sum(0).clamp(min=TINY)
        residual = (outside + (power * (ratio / (s + ratio)).square()).sum(0)).clamp(min=1e-5)
        alpha, beta = effective / weight, (n - effective) / residual
        if torch.allclose(alpha / beta, ratio, rtol=1e-9, atol=0):
            break
    evidence = n * (beta / (2 * torch.pi)).log() - beta * residual - alpha * weight - torch.log1p(s / ratio).sum(0)
    return float(evidence.mean() / (2 * n))


def transfer(model, data):
    """Evaluate the features on another data set with images of the same size. Returns "layer", the best layer by validation
    accuracy; "test" and "knn", its test accuracies (0 to 1); "logme_layers", the LogME of every layer on the training split;
    and "logme", the highest of these."""
    x, labels = layer_features(model, data.train)
    values = [logme(layer, labels, len(data.classes)) for layer in x]
    probe, _ = probe_network(model, data)
    choice = choose([probe])
    scores = {"layer": choice.layer, "test": choice.best(probe), "knn": probe["knn"][choice.layer]}
    return {**scores, "logme": max(values), "logme_layers": values}


# ---- all measures --------------------------------------------------------------------------------------------------------


def network(model, images):
    """Compute all measures of a network: CKA on all images, the others on 32 evenly spaced ones (local equivariance error: 8).

    Returns (dict of numbers and lists, rounded to six significant digits, that JSON can represent; map of the receptive field,
    (S, S) float32 array)."""
    few = spread(images, FEW)
    field = receptive_field(model, few)
    measures = {
        "roll_error": roll_error(model, few),
        "lie_error": lie_error(model, few[:8]),
        "receptive_field": {name: field[name] for name in ("side50", "side99", "distance")},
        "mixing_distance": mixing_distance(model, few),
        "content_distance": content_distance(model, few),
        "uniform_distance": uniform_distance(model.cfg.grid, model.cfg.circular),
        "spectrum": spectrum(model, few),
        "mixing_spectrum": mixing_spectrum(model, few),
        "cka": cka_layers(model, images).tolist(),
    }
    return rounded(measures), field["map"].cpu().numpy()


def rounded(value):
    """Round every float in nested dicts and lists to six significant digits."""
    if isinstance(value, dict):
        return {name: rounded(v) for name, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
