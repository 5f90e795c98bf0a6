"""Features compared: between layers and networks (CKA), and with the labels of another data set (LogME, transfer)."""

import torch
import torch.nn.functional as F

from ..networks.model import features
from .probe import layer_features, probe_network

TINY = 1e-12


def centred_gram(x):
    """(A, n, F) features -> (A, n*n) linear kernels, U-centred (Szekely & Rizzo, arXiv 1310.2926): the inner
    product of two, over n(n - 3), is the unbiased HSIC of Song et al. (JMLR 13, 2012)."""
    n = x.shape[1]
    off = 1 - torch.eye(n, dtype=x.dtype, device=x.device)
    gram = x @ x.mT * off
    means = gram.sum(2) / (n - 2)
    total = means.sum(1)[:, None, None] / (n - 1)
    return ((gram - means[:, :, None] - means[:, None, :] + total) * off).flatten(1)


def cka_matrix(ones, others, batch=256):
    """(A, n, F) and (B, n, F') features of the same n >= 4 images -> (A, B) linear CKA, the unbiased HSIC averaged over
    batches of images (Nguyen et al., arXiv 2010.15327; a last batch below four is left out). About 0, of either sign, for
    unrelated features; 0 for features that do not vary."""
    cross, one, other = 0, 0, 0
    for x, y in zip(ones.double().split(batch, 1), others.double().split(batch, 1), strict=True):
        if (n := x.shape[1]) >= 4:
            k, m = (centred_gram(part) / (n * (n - 3)) ** 0.5 for part in (x, y))
            cross, one, other = cross + k @ m.T, one + k.square().sum(1), other + m.square().sum(1)
    return cross / (one[:, None] * other).sqrt().clamp(min=TINY)


def cka(one, other, batch=256):
    """Linear CKA of (n, F) and (n, F') features of the same images, see `cka_matrix`."""
    return float(cka_matrix(one[None], other[None], batch))


@torch.no_grad()
def cka_layers(model, images, other=None):
    """(L + 1, L' + 1) CKA between the layers of two networks, or of one with itself, on the features that are probed: the
    token average of the normed grid."""
    one = features(model, images).transpose(0, 1)
    return cka_matrix(one, one if other is None else features(other, images).transpose(0, 1))


def logme(x, labels, classes):
    """Logarithm of maximum evidence per image, in nats (You et al., arXiv 2102.11005), of features (n, F) and labels (n,):
    the higher, the better a linear model on the features gives the labels.

    One Gaussian linear model without offset per class, on 0/1 targets, prior and noise precision alpha and beta at the
    fixed point of the evidence; mean over the classes that occur. A squared residual below 1e-5 counts as that.
    """
    y = F.one_hot(labels, classes).double()
    y = y[:, y.any(0)]
    n = len(y)
    u, s, _ = torch.linalg.svd(x.double(), full_matrices=False)
    power, s = (u.T @ y).square(), s.square()[:, None]
    outside = (y.square().sum(0) - power.sum(0)).clamp(min=0)
    alpha = beta = torch.ones_like(outside)
    for _ in range(1000):
        ratio = (alpha / beta).clamp(1e-10, 1e10)
        effective = (s / (s + ratio)).sum(0)  # number of parameters the data decide
        weight = (s * power / (s + ratio).square()).sum(0).clamp(min=TINY)
        residual = (outside + (power * (ratio / (s + ratio)).square()).sum(0)).clamp(min=1e-5)
        alpha, beta = effective / weight, (n - effective) / residual
        if torch.allclose(alpha / beta, ratio, rtol=1e-9, atol=0):
            break
    evidence = n * (beta / (2 * torch.pi)).log() - beta * residual - alpha * weight - torch.log1p(s / ratio).sum(0)
    return float(evidence.mean() / (2 * n))


def transfer(model, data):
    """The features on another data set, its images already of the model's size: the chosen row of the linear probe, with
    "logme", the best layer's LogME on the training split, and "logme_layers", that of every layer."""
    x, labels = layer_features(model, data.train)
    values = [logme(layer, labels, len(data.classes)) for layer in x]
    return {**probe_network(model, data)["chosen"], "logme": max(values), "logme_layers": values}
