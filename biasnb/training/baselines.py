"""Reconstructions that train nothing, the baselines of the masked PSNR, and the ceiling of a palette."""

import numpy as np
import torch
import torch.nn.functional as F

from ..data.palette import quantise
from ..networks.embed import arrange, pixel_order
from .pretext import evaluation_masks, pixel_mask, psnr


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
        here = missing & (count[:, 0] > 1e-9)
        filled[here] = mean[here]
        missing &= ~here
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


def baseline_psnr(split, cfg, part, chunk=500):
    """PSNR in dB of each baseline on one split under its fixed masks, on pixels in the order of the network."""
    order = pixel_order(cfg)
    hidden = pixel_mask(evaluation_masks(split, cfg, part), cfg.patch)
    errors = dict.fromkeys(BASELINES, 0.0)
    for images, mask in zip(arrange(split.images, order).split(chunk), hidden.split(chunk), strict=True):
        for name, fill in BASELINES.items():
            errors[name] += float((fill(images.float(), mask) - images.float()).square().sum(dtype=torch.float64))
    return {name: psnr(error, int(hidden.sum()) * 3) for name, error in errors.items()}


def palette_psnr(images, palette):
    """PSNR in dB of quantising all pixels: the ceiling of a palette head."""
    error = (palette.colours[quantise(images, palette).long()] - images.float()).square()
    return psnr(float(error.sum(dtype=torch.float64)), int(np.prod(images.shape)))
