"""What a run costs: bytes held for the backward pass, seconds from a short calibration, and the plan of a whole profile."""

import torch

from .pretext import LOSSES, draw


def activations(cfg, model, images=4):
    """Bytes that one image's forward pass keeps for the backward pass."""
    device, rng = model.mean.device, torch.Generator(model.mean.device).manual_seed(0)
    shape = (images, cfg.image_size, cfg.image_size, 3)
    batch = torch.randint(0, 256, shape, generator=rng, device=device).to(torch.uint8)
    given = draw(cfg, torch.zeros(images, dtype=torch.long, device=device), rng)
    known = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes(), x)  # held, so that no address is used twice
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "bf16"):
            LOSSES[cfg.pretext](model, batch, given)
    return sum(size for size, _ in kept.values()) / images
