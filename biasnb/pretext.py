"""BERT for images: hide tokens, predict their pixels. The common yardstick is the PSNR on hidden pixels, in dB."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt

from .data import generator
from .embed import patchify, unpatchify
from .palette import quantise


def draw_mask(n, grid, rate, generator):
    """(n, H, W) bool, True where hidden: every token independently with probability `rate` (image-GPT, section 3.2)."""
    return torch.rand(n, grid, grid, generator=generator, device=generator.device) < rate


def pixel_mask(mask, patch):
    """(B, H, W) tokens -> (B, S, S) pixels."""
    return mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2)


def bert_loss(model, images, mask):
    """Mean loss over the hidden tokens: squared error of standardised RGB, or cross-entropy in nats per pixel.

    images (B, S, S, 3) uint8, mask (B, H, W). Visible pixels never enter the loss; the head runs on hidden tokens only.
    """
    cfg = model.cfg
    predicted = model.head(model(model.encode(images), mask)[mask]).float()  # (M, p*p*3 or p*p*K)
    if cfg.target == "rgb":
        return F.mse_loss(predicted, patchify(model.standardise(images), cfg.patch)[mask])
    ids = patchify(quantise(images, model.palette)[..., None], cfg.patch)[mask]
    return F.cross_entropy(predicted.view(-1, cfg.colours), ids.flatten().long())


LOSSES = {"bert": bert_loss}


@torch.no_grad()
def reconstruct(model, images, mask):
    """(B, S, S, 3) float, 0 to 255: visible pixels as they are, hidden ones predicted (palette: posterior mean)."""
    cfg = model.cfg
    predicted = model.head(model(model.encode(images), mask)).float()
    if cfg.target == "rgb":
        pixels = unpatchify(predicted, cfg.patch) * model.std + model.mean
    else:
        logits = unpatchify(predicted, cfg.patch)
        pixels = logits.softmax(-1) @ model.palette.colours
    return torch.where(pixel_mask(mask, cfg.patch)[..., None], pixels.clamp(0, 255), images.float())


def psnr(squared_error, count):
    """Peak signal-to-noise ratio in dB from the summed squared error of `count` values on the scale 0 to 255."""
    return 10 * math.log10(255**2 * count / max(squared_error, 1e-12))


def evaluation_masks(split, cfg, part):
    """The fixed masks of an evaluation split: the same for every network, seed and device."""
    masks = draw_mask(len(split.labels), cfg.grid, cfg.mask_rate, generator("cpu", 0, "evaluation masks", part))
    return masks.to(split.images.device)


@torch.no_grad()
def evaluate(model, split, part, chunk=100):
    """{"loss", "psnr"} on one split under its fixed masks; loss averaged over hidden tokens, PSNR over hidden pixels."""
    masks = evaluation_masks(split, model.cfg, part)
    loss = error = hidden = 0.0
    for images, mask in zip(split.images.split(chunk), masks.split(chunk), strict=True):
        count = int(mask.sum())
        if count:
            loss += float(LOSSES[model.cfg.pretext](model, images, mask)) * count
            error += float((reconstruct(model, images, mask) - images.float()).square().sum(dtype=torch.float64))
            hidden += count
    return {"loss": loss / hidden, "psnr": psnr(error, hidden * model.cfg.patch**2 * 3)}


# ---- baselines that train nothing ---------------------------------------------------------------------------------


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
    filled = images.cpu().numpy().copy()
    for image, mask in zip(filled, hidden.cpu().numpy(), strict=True):
        if not mask.all():
            rows, columns = distance_transform_edt(mask, return_distances=False, return_indices=True)
            image[:] = image[rows, columns]
    return torch.from_numpy(filled).to(images.device)


BASELINES = {"image_mean": image_mean, "neighbour_mean": neighbour_mean, "nearest_visible": nearest_visible}


def baseline_psnr(split, cfg, part, chunk=500):
    """PSNR in dB of each baseline on one split under its fixed masks."""
    hidden = pixel_mask(evaluation_masks(split, cfg, part), cfg.patch)
    errors = dict.fromkeys(BASELINES, 0.0)
    for images, mask in zip(split.images.split(chunk), hidden.split(chunk), strict=True):
        for name, fill in BASELINES.items():
            errors[name] += float((fill(images.float(), mask) - images.float()).square().sum(dtype=torch.float64))
    return {name: psnr(error, int(hidden.sum()) * 3) for name, error in errors.items()}


def palette_psnr(images, palette):
    """PSNR in dB of quantising all pixels: the ceiling of a palette head."""
    error = (palette.colours[quantise(images, palette).long()] - images.float()).square()
    return psnr(float(error.sum(dtype=torch.float64)), int(np.prod(images.shape)))
