"""Training tasks: masked tokens, the next token, noise, labels. Networks that predict pixels share one yardstick, the PSNR of
the pixels they had to predict, in dB."""

import math

import torch
import torch.nn.functional as F

from ..data.datasets import generator
from ..data.palette import quantise
from ..networks.embed import patchify, unpatchify
from ..networks.model import per_pass

RECONSTRUCTED = 2048  # images of a split that its PSNR and pretext loss are taken of


def draw_mask(n, grid, rate, generator):
    """(n, H, W) bool, True where hidden: every token independently with probability `rate` (image-GPT, section 3.2)."""
    return torch.rand(n, grid, grid, generator=generator, device=generator.device) < rate


def pixel_mask(mask, patch):
    """(B, H, W) tokens -> (B, S, S) pixels."""
    return mask.repeat_interleave(patch, 1).repeat_interleave(patch, 2)


def draw(cfg, labels, generator):
    """What a task needs beside B images: for 'bert' the mask (B, H, W), True where hidden; for 'denoise' normal noise
    (B, S, S, 3); for 'supervised' the labels (B,); for 'ar' nothing."""
    if cfg.pretext == "bert":
        return draw_mask(len(labels), cfg.grid, cfg.mask_rate, generator)
    if cfg.pretext == "denoise":
        size = cfg.image_size
        return torch.randn(len(labels), size, size, 3, generator=generator, device=generator.device)
    return labels if cfg.pretext == "supervised" else None


def corrupted(model, images, given):
    """Arranged images as the network gets them: with noise added under 'denoise', as they are otherwise."""
    if model.cfg.pretext != "denoise":
        return images
    return (images.float() + model.cfg.noise * model.std * given).clamp(0, 255)


def hidden_grid(model, images, given):
    """Arranged images and what `draw` gave -> (B, H, W, D), from which the head predicts."""
    return model(model.encode(corrupted(model, images, given)), given if model.cfg.pretext == "bert" else None)


def targets(model, images):
    """Arranged images -> what every token holds: standardised colours (B, H, W, p*p*3) or palette indices (B, H, W, p*p)."""
    if model.cfg.target == "rgb":
        return patchify(model.standardise(images), model.cfg.patch)
    return patchify(quantise(images, model.palette)[..., None], model.cfg.patch).long()


def token_errors(model, vectors, target):
    """(n,) loss of each of n tokens, from the (n, D) vectors that the head reads and the (n, ...) `targets`: squared error of
    standardised RGB, or cross-entropy in nats, averaged over the token's values."""
    predicted = model.head(vectors).float()  # (n, p*p*3 or p*p*K)
    if model.cfg.target == "rgb":
        return (predicted - target).square().mean(1)
    logits = predicted.view(-1, model.cfg.colours)
    return F.cross_entropy(logits, target.flatten(), reduction="none").view(target.shape).mean(1)


def pixel_loss(model, images, given, vectors=None):
    """Mean loss of images (B, S, S, 3) uint8 over the tokens to predict, the hidden ones under 'bert', for which alone the head
    runs, and all otherwise, see `token_errors`. `vectors` are the `hidden_grid` of the arranged images where it is known."""
    images = model.arrange(images)
    vectors = hidden_grid(model, images, given) if vectors is None else vectors
    vectors, target = vectors.flatten(0, 2), targets(model, images).flatten(0, 2)
    if model.cfg.pretext == "bert":
        hidden = given.flatten().nonzero().flatten()
        vectors, target = vectors.index_select(0, hidden), target.index_select(0, hidden)
    return token_errors(model, vectors, target).mean()


def classify(model, x):
    """Encoded images -> (B, C) logits from the token average of the last hidden grid."""
    return model.head(model(x).mean((1, 2))).float()


def label_loss(model, images, labels):
    """Cross-entropy of the labels, in nats."""
    return F.cross_entropy(classify(model, model.encode(model.arrange(images))), labels)


LOSSES = {"bert": pixel_loss, "ar": pixel_loss, "denoise": pixel_loss, "supervised": label_loss}


def pixels_of(model, vectors):
    """Hidden vectors (B, H, W, D) -> predicted colours (B, S, S, 3), 0 to 255 (palette: posterior mean), arranged."""
    predicted = unpatchify(model.head(vectors).float(), model.cfg.patch)
    if model.cfg.target == "rgb":
        return predicted * model.std + model.mean
    return predicted.softmax(-1) @ model.palette.colours


@torch.no_grad()
def reconstruct(model, images, given, vectors=None):
    """(B, S, S, 3) float, 0 to 255: under 'bert' visible pixels as they are and hidden ones predicted; under 'denoise' and
    'ar' every pixel predicted, under 'ar' from the true pixels before it. `vectors` as in `pixel_loss`."""
    vectors = hidden_grid(model, model.arrange(images), given) if vectors is None else vectors
    pixels = model.restore(pixels_of(model, vectors).clamp(0, 255))
    return torch.where(predicted_pixels(model, images, given)[..., None], pixels, images.float())


def predicted_pixels(model, images, given):
    """(B, S, S) bool: the pixels that the task predicts."""
    if model.cfg.pretext != "bert":
        return torch.ones(images.shape[:3], dtype=torch.bool, device=images.device)
    return model.restore(pixel_mask(given, model.cfg.patch))


@torch.no_grad()
def complete(model, images, known, generator=None, spread=0.0):
    """Images (B, S, S, 3) with the tokens that are not `known` (H, W) filled in one by one, in raster order, by an
    autoregressive network; (B, S, S, 3) float, 0 to 255.

    With a generator every token is a sample: palette colours from the predicted distribution, RGB from a normal one around
    the prediction with standard deviation `spread`, in units of that of the pixels. Without, it is the mean prediction."""
    cfg, p = model.cfg, model.cfg.patch
    x = model.arrange(images).float()
    for row, column in (~known).nonzero().tolist():
        spot = slice(row * p, row * p + p), slice(column * p, column * p + p)
        vectors = model(model.encode(x))[:, row : row + 1, column : column + 1]
        if cfg.target == "palette" and generator:
            chances = model.head(vectors).float().view(-1, cfg.colours).softmax(-1)
            drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
            token = model.palette.colours[drawn].view(-1, p, p, 3)
        else:
            token = pixels_of(model, vectors)
            if generator:
                token = token + spread * model.std * torch.randn(token.shape, generator=generator, device=token.device)
        x[:, spot[0], spot[1]] = token.clamp(0, 255)
    return model.restore(x)


def sample(model, n, variance):
    """(n, S, S, 3) uint8 images drawn pixel by pixel from an autoregressive network; for RGB with the `variance` of its
    predictions, the mean squared error of standardised pixels. Always the same draws."""
    cfg, device = model.cfg, model.mean.device
    blank = torch.zeros(n, cfg.image_size, cfg.image_size, 3, dtype=torch.uint8, device=device)
    known = torch.zeros(cfg.grid, cfg.grid, dtype=torch.bool, device=device)
    drawn = complete(model, blank, known, generator(device, 0, "samples"), math.sqrt(variance))
    return drawn.round().byte().cpu().numpy()


def psnr(squared_error, count):
    """Peak signal-to-noise ratio in dB from the summed squared error of `count` values on the scale 0 to 255. Of a split it is
    taken once, from all pixels of all images together; it is not the mean of the ratios of single images."""
    return 10 * math.log10(255**2 * count / max(squared_error, 1e-12))


def evaluation_masks(split, cfg, part):
    """The fixed masks of an evaluation split: the same for every network, seed and device."""
    masks = draw_mask(len(split.labels), cfg.grid, cfg.mask_rate, generator("cpu", 0, "evaluation masks", part))
    masks[0, 0, 0] |= not masks.any()  # of very few tokens none may be hidden by chance
    return masks.to(split.images.device)


def evaluation_draw(cfg, split, part):
    """What `draw` gives for an evaluation split, fixed; a list with one entry per image."""
    if cfg.pretext == "bert":
        return evaluation_masks(split, cfg, part)
    given = draw(cfg, split.labels.cpu(), generator("cpu", 0, "evaluation", part))
    return given if given is None else given.to(split.images.device)


def spread(x, count):
    """`count` entries of a tensor, evenly spread over its first dimension; all if there are fewer."""
    n = len(x)
    return x if n <= count else x[torch.arange(count, device=x.device) * n // count]


@torch.no_grad()
def evaluate(model, split, part, chunk=None):
    """{"loss", "psnr", "accuracy"} on one split under its fixed masks or noise: the loss averaged over predicted tokens or
    labels, PSNR pooled over the predicted pixels of all images, see `psnr`; None for what a task has not. A task that predicts
    pixels is evaluated on RECONSTRUCTED images, evenly spread over the split."""
    cfg = model.cfg
    every, hints = split.images, evaluation_draw(cfg, split, part)
    if cfg.predicts:
        every, hints = spread(every, RECONSTRUCTED), None if hints is None else spread(hints, RECONSTRUCTED)
    loss = error = right = total = pixels = 0
    chunk = chunk or per_pass(cfg, every.device)
    for i in range(0, len(every), chunk):
        images, hint = every[i : i + chunk], None if hints is None else hints[i : i + chunk]
        count = int(hint.sum()) if cfg.pretext == "bert" else len(images)
        if not count:
            continue
        total += count
        if cfg.predicts:
            vectors = hidden_grid(model, model.arrange(images), hint)
            loss += float(pixel_loss(model, images, hint, vectors)) * count
            error += float((reconstruct(model, images, hint, vectors) - images.float()).square().sum(dtype=torch.float64))
            pixels += int(predicted_pixels(model, images, hint).sum())
        else:
            logits = classify(model, model.encode(model.arrange(images)))
            loss += float(F.cross_entropy(logits, hint)) * count
            right += int((logits.argmax(1) == hint).sum())
    if cfg.predicts:
        return {"loss": loss / total, "psnr": psnr(error, pixels * 3), "accuracy": None}
    return {"loss": loss / total, "psnr": None, "accuracy": right / total}


def examples(model, images, given):
    """What a figure shows of a network: {"input", "reconstruction"}, (n, S, S, 3) uint8. Under 'bert' what is hidden is
    grey; under 'ar' the lower half is, and is completed (palette: by samples); under 'denoise' the input is noisy."""
    cfg = model.cfg
    if cfg.pretext == "ar":
        known = torch.arange(cfg.grid**2, device=images.device).view(cfg.grid, cfg.grid) < cfg.grid**2 // 2
        grey = ~model.restore(pixel_mask(known.expand(len(images), -1, -1), cfg.patch))
        filled = complete(model, images, known, generator(images.device, 0, "completion") if cfg.target == "palette" else None)
    else:
        filled = reconstruct(model, images, given)
        grey = predicted_pixels(model, images, given) if cfg.pretext == "bert" else None
    seen = model.restore(corrupted(model, model.arrange(images), given)).float()
    seen = seen if grey is None else torch.where(grey[..., None], 128.0, seen)
    return {name: x.round().byte().cpu().numpy() for name, x in (("input", seen), ("reconstruction", filled))}
