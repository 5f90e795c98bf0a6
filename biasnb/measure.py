"""What an operator or a network does, measured on it."""

import torch


def footprint(mix, grid, width, position=None, generator=None):
    """How much the output at one position depends on each input position: the norm of the Jacobian block.

    mix maps (1, H, W, D) to (1, H, W, D). position (row, column), the centre if None. Returns (H, W), zero exactly where
    nothing is read. The input is random normal.
    """
    row, column = position or (grid // 2, grid // 2)
    x = torch.randn(1, grid, grid, width, generator=generator).requires_grad_()
    outputs = mix(x)[0, row, column]
    picks = torch.eye(width)
    (jacobian,) = torch.autograd.grad(outputs, x, picks, is_grads_batched=True)
    return jacobian[:, 0].square().sum((0, 3)).sqrt()
