"""Linear probe and k-nearest neighbours on frozen, token-averaged features per layer, and reconstructions without training,
which are the baselines of the masked PSNR."""

import warnings

import numpy as np
import torch
import torch.nn.functional as F

from ..data.palette import quantise
from ..networks.embed import arrange, pixel_order
from ..networks.model import features, per_pass
from .pretext import RECONSTRUCTED, evaluation_masks, pixel_mask, psnr, spread

PENALTIES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # added to mean entropy; scikit-learn's C = 1 / (n * penalty)
GRADIENT, EVALUATIONS = 1e-6, 5000  # stopping criteria of L-BFGS
STEEP = 1e-3  # a larger final gradient means that L-BFGS has not converged
NEIGHBOURS, TEMPERATURE = 20, 0.07  # Wu et al., arXiv 1805.01978


@torch.no_grad()
def layer_features(model, split):
    """Return ((L + 1, n, D) features, (n,) labels) of the labelled images of a split."""
    labelled = split.labels >= 0
    images = split.images[labelled]
    parts = images.split(per_pass(model.cfg, images.device))
    return torch.cat([features(model, part) for part in parts]).transpose(0, 1), split.labels[labelled]


def pixel_features(split):
    """Return ((1, n, S*S*3) pixels, (n,) labels) of the labelled images of a split, the baseline of every probe."""
    labelled = split.labels >= 0
    return split.images[labelled].float().flatten(1)[None], split.labels[labelled]


def whitening(x):
    """Return (mean (F,), matrix (F, F)) of features x (n, F). (x - mean) @ matrix are the principal components of the
    standardised features, each divided by sqrt(variance + 1). Directions of large variance (the average is 1) are whitened, so
    that one penalty suits networks and raw pixels. Directions of small variance, including rounding errors, are not amplified,
    because whitening all directions lowers accuracy (docs/recipe.md)."""
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    z = (x - mean) / std
    variance, axes = torch.linalg.eigh(z.T @ z / len(z))
    return mean, axes / std[:, None] * (variance.clamp(min=0) + 1).rsqrt()


def fit_logistic(x, y, classes, penalties=PENALTIES):
    """Fit a multinomial logistic regression at each of P penalties: x (n, F) float64, y (n,) -> weights (P, C, F + 1). The last
    column is the bias, which is not penalised.

    The weights minimise mean cross-entropy + penalty/2 * |W|^2. L-BFGS finds them from the strongest penalty to the weakest,
    each starting at the previous minimum. It works on columns scaled by their expected curvature, which shortens the search if
    columns are uncorrelated and does not change the minimum."""
    from scipy.optimize import minimize  # slow to import
    from threadpoolctl import threadpool_limits

    curvature = x.square().mean(0) / classes
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    weights, found = x.new_zeros(classes, x.shape[1]), {}
    with threadpool_limits(1, user_api="blas"):  # several threads would spend ten times as long on waiting for each other
        for penalty in sorted(penalties, reverse=True):
            scale = torch.cat([(curvature + penalty).rsqrt(), x.new_tensor([classes**0.5])])
            objective = penalised_entropy(x, y, classes, penalty, scale)
            start = (weights / scale).flatten().cpu().numpy()
            ends = {"maxiter": EVALUATIONS, "maxfun": EVALUATIONS, "maxcor": 20, "ftol": 0.0, "gtol": GRADIENT}
            end = minimize(objective, start, jac=True, method="L-BFGS-B", options=ends)
            if not abs(end.jac).max() < STEEP:
                warnings.warn(f"probe: no minimum at penalty {penalty} ({end.message})", stacklevel=2)
            found[penalty] = weights = x.new_tensor(end.x).view_as(weights) * scale
    return torch.stack([found[penalty] for penalty in penalties])


def penalised_entropy(x, y, classes, penalty, scale):
    """Return the objective of L-BFGS, a function from weights / scale (flat numpy array) to (mean cross-entropy + penalty/2 *
    |W|^2, its gradient). The last column of x (n, F + 1) is constant, and its weight is not penalised."""
    columns, images = x.T.contiguous(), torch.arange(len(x), device=x.device)
    strength = torch.full_like(scale, penalty)
    strength[-1] = 0

    def objective(scaled):
        w = x.new_tensor(scaled).view(classes, -1) * scale
        logits = w @ columns
        total = logits.logsumexp(0)
        value = (total - logits[y, images]).mean() + (strength * w.square()).sum() / 2
        p = (logits - total).exp_()
        p[y, images] -= 1
        return float(value), (scale * (p @ x / len(x) + strength * w)).flatten().cpu().numpy()

    return objective


def linear_probe(train, val, test, classes):
    """Probe every layer at every penalty. Each split is (features (L, n, F), labels (n,)), all on one device.

    Features are whitened on the training split (see `whitening`). Returns ({"penalties": P values, ascending; "train", "val",
    "test": L x P accuracies, 0 to 1}, (L, n_test) uint8 array whose bit p is set if the image is classified correctly at
    penalty p). `records.sweep.choose` later selects layer and penalties from the records of all seeds."""
    splits = {"train": train, "val": val, "test": test}
    table = {"penalties": list(PENALTIES), **{name: [] for name in splits}}
    bits = 2 ** torch.arange(len(PENALTIES), device=test[1].device)
    correct = []
    for layer in range(len(train[0])):
        features = train[0][layer].double()
        mean, matrix = whitening(features)
        w = fit_logistic((features - mean) @ matrix, train[1], classes)
        for name, (x, y) in splits.items():
            z = (x[layer].double() - mean) @ matrix
            logits = z @ w[..., :-1].flatten(0, 1).T + w[..., -1].flatten()
            right = logits.view(len(z), len(w), classes).argmax(2) == y[:, None]
            table[name].append(right.double().mean(0).tolist())
        correct.append((right * bits).sum(1))  # `right` of the last split, test
    return table, torch.stack(correct).cpu().numpy().astype(np.uint8)


def knn(train, test, classes, chunk=500):
    """Return the test accuracy per layer (list) of weighted k-nearest neighbours by cosine similarity (arXiv 1805.01978)."""
    accuracies = []
    labels = F.one_hot(train[1], classes).float()
    k = min(NEIGHBOURS, len(labels))
    for x, queries in zip(F.normalize(train[0], dim=2), F.normalize(test[0], dim=2), strict=True):
        votes, every = [], x.new_empty(chunk, len(x))  # reused, because allocation takes longer than the product
        for part in queries.split(chunk):
            similarity, index = torch.mm(part, x.T, out=every[: len(part)]).topk(k, dim=1)
            votes.append(((similarity / TEMPERATURE).exp()[..., None] * labels[index]).sum(1).argmax(1))
        accuracies.append(float((torch.cat(votes) == test[1]).double().mean()))
    return accuracies


def probe_splits(train, val, test, classes):
    """Return (table of `linear_probe` and k-NN, correctness of the test images) as saved in a record. The probe is fitted on
    the CPU, because L-BFGS takes thousands of small steps."""
    table, correct = linear_probe(*((x.cpu(), y.cpu()) for x, y in (train, val, test)), classes)
    found = {"knn": knn(train, test, classes), "neighbours": min(NEIGHBOURS, len(train[1])), "temperature": TEMPERATURE}
    return {**table, **found}, correct


def probe_network(model, data):
    """Return the `probe_splits` of the L + 1 layers of a network."""
    return probe_splits(*(layer_features(model, split) for split in (data.train, data.val, data.test)), len(data.classes))


def probe_pixels(data):
    """Return the `probe_splits` of raw pixels, as of one layer."""
    return probe_splits(*(pixel_features(split) for split in (data.train, data.val, data.test)), len(data.classes))


# ---- reconstructions without training -------------------------------------------------------------------------------------


def image_mean(images, hidden):
    """Fill hidden pixels with the mean of the visible pixels of the image. images (B, S, S, 3) float, hidden (B, S, S)."""
    seen = ~hidden[..., None]
    mean = (images * seen).sum((1, 2), keepdim=True) / seen.sum((1, 2), keepdim=True).clamp(min=1)
    return torch.where(seen, images, mean)


def neighbour_mean(images, hidden):
    """Fill every hidden pixel with the mean of the visible pixels in the smallest window around it that contains any."""
    seen = (~hidden[:, None]).float()
    x = images.permute(0, 3, 1, 2) * seen
    filled, missing = images.clone(), hidden.clone()
    for reach in range(1, images.shape[1]):
        if not missing.any():
            break
        window = {"kernel_size": 2 * reach + 1, "stride": 1, "padding": reach}
        count = F.avg_pool2d(seen, **window)
        mean = (F.avg_pool2d(x, **window) / count.clamp(min=1e-9)).permute(0, 2, 3, 1)
        found = missing & (count[:, 0] > 1e-9)
        filled[found] = mean[found]
        missing &= ~found
    return filled


def nearest_visible(images, hidden):
    """Fill every hidden pixel with the visible pixel at the smallest Euclidean distance."""
    from scipy.ndimage import distance_transform_edt  # only baselines need it

    filled = images.cpu().numpy().copy()
    for image, mask in zip(filled, hidden.cpu().numpy(), strict=True):
        if not mask.all():
            rows, columns = distance_transform_edt(mask, return_distances=False, return_indices=True)
            image[:] = image[rows, columns]
    return torch.from_numpy(filled).to(images.device)


BASELINES = {"image_mean": image_mean, "neighbour_mean": neighbour_mean, "nearest_visible": nearest_visible}


def baseline_psnr(data, cfg, part, chunk=500):
    """Return the PSNR in dB of each baseline on the split `part`, for the images, masks and pixel order with which networks are
    evaluated (`pretext.evaluate`). An image without visible pixels is filled with the mean colour of the training images."""
    split, order, (mean, _) = getattr(data, part), pixel_order(cfg), data.stats()
    hidden = pixel_mask(spread(evaluation_masks(split, cfg, part), RECONSTRUCTED), cfg.patch)
    arranged = arrange(spread(split.images, RECONSTRUCTED), order)
    errors = dict.fromkeys(BASELINES, 0.0)
    for images, mask in zip(arranged.split(chunk), hidden.split(chunk), strict=True):
        pixels, blind = images.float(), mask.all(2).all(1)[:, None, None, None]
        for name, fill in BASELINES.items():
            filled = torch.where(blind, mean, fill(pixels, mask))
            errors[name] += float((filled - pixels).square().sum(dtype=torch.float64))
    return {name: psnr(error, int(hidden.sum()) * 3) for name, error in errors.items()}


def palette_psnr(images, palette):
    """Return the PSNR in dB of quantising all pixels, an upper bound for networks that predict palette colours."""
    error = (palette.colours[quantise(images, palette).long()] - images.float()).square()
    return psnr(float(error.sum(dtype=torch.float64)), int(np.prod(images.shape)))
