"""Linear probe and k-nearest neighbours on frozen, token-averaged features per layer, and the baselines of the masked PSNR:
reconstructions that train nothing."""

import numpy as np
import torch
import torch.nn.functional as F

from ..data.palette import quantise
from ..networks.embed import arrange, pixel_order
from ..networks.model import features, per_pass
from .pretext import evaluation_masks, pixel_mask, psnr

PENALTIES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # of the mean cross-entropy; scikit-learn's C = 1 / (n * penalty)
NEIGHBOURS, TEMPERATURE = 20, 0.07  # Wu et al., arXiv 1805.01978
TINY = 1e-30


@torch.no_grad()
def layer_features(model, split):
    """((L + 1, n, D) features, (n,) labels) of the labelled images of a split."""
    labelled = split.labels >= 0
    images = split.images[labelled]
    parts = images.split(per_pass(model.cfg, images.device))
    return torch.cat([features(model, part) for part in parts]).transpose(0, 1), split.labels[labelled]


def pixel_features(split):
    """((1, n, S*S*3) pixels, (n,) labels) of the labelled images of a split: the baseline of every probe."""
    labelled = split.labels >= 0
    return split.images[labelled].float().flatten(1)[None], split.labels[labelled]


def fit_logistic(x, y, classes, penalties=PENALTIES, max_iter=100):
    """Multinomial logistic regression by L-BFGS, all layers and penalties in one pass.

    x (L, n, F) standardised, y (n,) -> weights (L, F + 1, P, C), the last row the bias, which is not penalised.
    Minimises mean cross-entropy + penalty/2 * |W|^2 for each layer and penalty. The search runs along the principal axes
    of the features, each scaled by its expected curvature; that changes the path, not the minimum."""
    layers, n, width = x.shape
    variance, axes = torch.linalg.eigh(x.mT @ x / n)
    x = torch.cat([x @ axes, x.new_ones(layers, n, 1)], 2)
    columns = x.mT.contiguous()
    strength = torch.cat([x.new_tensor(penalties)[:, None].expand(-1, width), x.new_zeros(len(penalties), 1)], 1)
    curvature = torch.cat([variance.clamp(min=0), x.new_ones(layers, 1)], 1)[:, None, None] / classes
    scale = (curvature + strength).rsqrt()
    u = x.new_zeros(layers, classes, len(penalties), width + 1)  # classes before images: a softmax over long rows is fast
    target = y.expand(layers, 1, len(penalties), n)

    def closure():
        w = scale * u
        p = (w.flatten(1, 2) @ columns).view(layers, classes, len(penalties), n).softmax(1)
        right = p.gather(1, target)
        p.scatter_(1, target, right - 1)
        u.grad = scale * ((p.flatten(1, 2) @ x).view_as(w) / n + strength * w)
        return (strength / 2 * w.square()).sum() - right.clamp(min=TINY).log().sum() / n

    ends = {"max_iter": max_iter, "tolerance_grad": 1e-5, "tolerance_change": 1e-8}
    torch.optim.LBFGS([u], **ends, history_size=10, line_search_fn="strong_wolfe").step(closure)
    w = (scale * u).permute(0, 3, 2, 1)
    return torch.cat([(axes @ w[:, :-1].flatten(2)).unflatten(2, w.shape[2:]), w[:, -1:]], 1)


def linear_probe(train, val, test, classes):
    """Probe every layer. Arguments are (features (L, n, F), labels (n,)) per split.

    Penalty per layer and then the layer are chosen by validation accuracy. Returns a dict: "layers", one row per
    layer {layer, penalty, train, val, test} with accuracies 0 to 1; "chosen", the row of the chosen layer; "correct",
    (n_test,) bool at the chosen layer."""
    mean = train[0].mean(1, keepdim=True)
    std = train[0].std(1, keepdim=True).clamp(min=1e-6)
    w = fit_logistic((train[0] - mean) / std, train[1], classes)
    right = {}  # split -> (L, n, P) bool, whether each image is classified right
    for name, (x, y) in {"train": train, "val": val, "test": test}.items():
        logits = ((x - mean) / std) @ w[:, :-1].flatten(2) + w[:, -1].flatten(1)[:, None]
        right[name] = logits.unflatten(2, w.shape[2:]).argmax(3) == y[None, :, None]
    rows = []
    for layer in range(len(w)):
        best = int(right["val"][layer].float().mean(0).argmax())
        accuracy = {name: float(found[layer, :, best].double().mean()) for name, found in right.items()}
        rows.append({"layer": layer, "penalty": PENALTIES[best], **accuracy})
    chosen = max(rows, key=lambda row: row["val"])
    correct = right["test"][chosen["layer"], :, PENALTIES.index(chosen["penalty"])]
    return {"layers": rows, "chosen": chosen, "correct": correct}


def knn(train, test, classes, chunk=500):
    """Test accuracy per layer (list) of weighted k-nearest neighbours by cosine similarity (arXiv 1805.01978)."""
    accuracies = []
    labels = F.one_hot(train[1], classes).float()
    k = min(NEIGHBOURS, len(labels))
    for x, queries in zip(F.normalize(train[0], dim=2), F.normalize(test[0], dim=2), strict=True):
        votes, every = [], x.new_empty(chunk, len(x))  # used again: fresh memory takes longer than the product
        for part in queries.split(chunk):
            similarity, index = torch.mm(part, x.T, out=every[: len(part)]).topk(k, dim=1)
            votes.append(((similarity / TEMPERATURE).exp()[..., None] * labels[index]).sum(1).argmax(1))
        accuracies.append(float((torch.cat(votes) == test[1]).double().mean()))
    return accuracies


def probe_network(model, data):
    """Linear probe and k-NN of every layer on all splits. Returns `linear_probe`'s dict with "knn" in each row."""
    train, val, test = (layer_features(model, split) for split in (data.train, data.val, data.test))
    result = linear_probe(train, val, test, len(data.classes))
    for row, accuracy in zip(result["layers"], knn(train, test, len(data.classes)), strict=True):
        row["knn"] = accuracy
    return result


def probe_pixels(data):
    """The chosen row of a linear probe on raw pixels."""
    train, val, test = (pixel_features(split) for split in (data.train, data.val, data.test))
    return linear_probe(train, val, test, len(data.classes))["chosen"]


# ---- reconstructions that train nothing ----------------------------------------------------------------------------------


def image_mean(images, hidden):
    """Every hidden pixel becomes the mean of the image's visible pixels. images (B, S, S, 3) float, hidden (B, S, S)."""
    seen = ~hidden[..., None]
    mean = (images * seen).sum((1, 2), keepdim=True) / seen.sum((1, 2), keepdim=True).clamp(min=1)
    return torch.where(seen, images, mean)


def neighbour_mean(images, hidden):
    """Every hidden pixel becomes the mean of the visible pixels in the smallest window around it that holds any."""
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
    """Every hidden pixel becomes the visible pixel at the smallest Euclidean distance."""
    from scipy.ndimage import distance_transform_edt  # only baselines need it

    filled = images.cpu().numpy().copy()
    for image, mask in zip(filled, hidden.cpu().numpy(), strict=True):
        if not mask.all():
            rows, columns = distance_transform_edt(mask, return_distances=False, return_indices=True)
            image[:] = image[rows, columns]
    return torch.from_numpy(filled).to(images.device)


BASELINES = {"image_mean": image_mean, "neighbour_mean": neighbour_mean, "nearest_visible": nearest_visible}


def baseline_psnr(data, cfg, part, chunk=500):
    """PSNR in dB of each baseline on one split of the data under its fixed masks, on pixels in the order of the network. An
    image with nothing visible gets the mean colour of the training images."""
    split, order, (mean, _) = getattr(data, part), pixel_order(cfg), data.stats()
    hidden = pixel_mask(evaluation_masks(split, cfg, part), cfg.patch)
    errors = dict.fromkeys(BASELINES, 0.0)
    for images, mask in zip(arrange(split.images, order).split(chunk), hidden.split(chunk), strict=True):
        pixels, blind = images.float(), mask.all(2).all(1)[:, None, None, None]
        for name, fill in BASELINES.items():
            filled = torch.where(blind, mean, fill(pixels, mask))
            errors[name] += float((filled - pixels).square().sum(dtype=torch.float64))
    return {name: psnr(error, int(hidden.sum()) * 3) for name, error in errors.items()}


def palette_psnr(images, palette):
    """PSNR in dB of quantising all pixels: the ceiling of a palette head."""
    error = (palette.colours[quantise(images, palette).long()] - images.float()).square()
    return psnr(float(error.sum(dtype=torch.float64)), int(np.prod(images.shape)))
