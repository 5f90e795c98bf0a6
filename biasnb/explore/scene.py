"""The scene of the playground: an image and a mask, the responses of networks to them, and their display as a sheet."""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import matplotlib
import numpy as np
import torch

from ..config import BiasnbError, short
from ..data.datasets import generator
from ..figures.style import STYLE, footer
from ..networks import pretrained
from ..records.store import Store
from ..training.measures import mixing_row, rolled, sensitivity
from ..training.pretext import draw_mask, pixel_mask, predicted_pixels, psnr, reconstruct

GREY, GAP = 128, 4  # grey level of hidden tokens; pixels between tiles, for their labels, if images have 16 pixels
ROWS = 4  # reconstruction, mixing pattern, receptive field, shift
SMALL_PRINT = (
    "Square: the position that is looked at. Its maps are each over their own maximum, white is exactly 0. "
    "Shift: relative error of each token's features, dark 0, bright 1 or more."
)


def random_mask(grid, rate, seed):
    return draw_mask(1, grid, rate, generator("cpu", seed, "playground"))[0]


def centre_square(grid, rate, seed):
    side = min(grid // 2 + (grid - grid // 2) % 2, grid - 1)
    place = torch.arange(grid) - (grid - side) // 2
    inside = (place >= 0) & (place < side)
    return inside[:, None] & inside


def every_second_row(grid, rate, seed):
    return (torch.arange(grid) % 2 == 1)[:, None].expand(grid, grid)


def lower_half(grid, rate, seed):
    return (torch.arange(grid) >= grid / 2)[:, None].expand(grid, grid)


# Name of a mask -> function of (tokens per side, rate, seed) that returns (H, W) bool, True where hidden.
MASKS = {
    "random": random_mask,
    "centre square": centre_square,
    "every second row": every_second_row,
    "lower half": lower_half,
}


@dataclass(frozen=True)
class Scene:
    """The input of the networks and the displayed part: image (S, S, 3) uint8; mask (H, W), True where hidden; position (row,
    column) in tokens; layer from 1 to L, or the last of networks with fewer; head from 0, or None for the mean over heads;
    shift (rows, columns) in tokens."""

    image: torch.Tensor
    mask: torch.Tensor
    position: tuple
    layer: int = 1
    head: int | None = None
    shift: tuple = (1, 2)


class Response(NamedTuple):
    """The response of a network to a Scene: the reconstructed image (S, S, 3) uint8; PSNR of the predicted pixels in dB, None
    without any; `mixing_row` (H, W); `sensitivity` (S, S); the relative error |h(T x) - T h(x)| / |h(x)| of a shift T for each
    token of h^L (H, W), and for all tokens together."""

    filled: np.ndarray
    psnr: float | None
    mixing: np.ndarray
    field: np.ndarray
    shift_map: np.ndarray
    shift_error: float


def respond(model, scene, last=None, known=None):
    """Return the Response of a network to a Scene. Parts that have not changed since the Scene `last` are copied from its
    Response `known`."""

    def changed(*names):
        return known is None or any(differs(getattr(scene, name), getattr(last, name)) for name in names)

    found, image, mask = known._asdict() if known else {}, scene.image[None], scene.mask[None]
    if changed("image", "mask"):
        filled = reconstruct(model, image, mask)
        missed = (filled - image.float())[predicted_pixels(model, image, mask)]
        found["filled"] = filled[0].round().byte().numpy()
        found["psnr"] = psnr(float(missed.square().sum()), missed.numel()) if missed.numel() else None
    if changed("image", "mask", "position", "layer", "head"):
        found["mixing"] = mixing_row(model, image, scene.position, *layer_and_head(model, scene), mask).numpy()
    if changed("image", "mask", "position"):
        found["field"] = sensitivity(model, image, scene.position, mask).numpy()
    if changed("image", "mask", "shift"):
        error, still = (h[0] for h in rolled(model, image, scene.shift, mask)[-1])
        found["shift_map"] = (error.norm(dim=2) / still.norm(dim=2)).numpy()
        found["shift_error"] = float(error.norm() / still.norm())
    return Response(**found)


def differs(new, old):
    """Return whether a field of a Scene has changed; a different tensor object counts as a change."""
    return new is not old and (isinstance(new, torch.Tensor) or new != old)


def layer_and_head(model, scene):
    """Return the layer and the head of a Scene, limited to those of the network."""
    return min(scene.layer, model.cfg.depth), None if scene.head is None else min(scene.head, heads_of(model) - 1)


def heads_of(model):
    return getattr(model.stack[0].mix, "heads", 1)


def networks(names, profile="quick"):
    """Return {name: network} for names of published networks, keys of the user's runs, or folders (see `pretrained.network`).
    If the profile has no published networks, those of `quick` are used.

    Raises BiasnbError for an unknown name, and for networks that cannot be displayed together."""
    if not isinstance(names, list | tuple):
        raise BiasnbError(f"networks: {short(names)} is not a list of names; e.g. ['conv', 'attn']")
    known = profile if pretrained.folder(profile).is_dir() else "quick"
    own = {path.stem for path in Store(profile).folder.glob("*.safetensors")}
    found = {name: pretrained.network(name, profile if name in own else known) for name in names}
    for name, cfg in ((name, model.cfg) for name, model in found.items()):
        if cfg.pretext != "bert":
            raise BiasnbError(f"network: {short(name)} has pretext {cfg.pretext!r} and fills no holes; choose one with 'bert'")
        if cfg.permute != "none":
            raise BiasnbError(f"network: {short(name)} sees its pixels permuted, which no picture shows; choose another")
    sizes = {name: (model.cfg.image_size, model.cfg.patch) for name, model in found.items()}
    if len(set(sizes.values())) > 1:
        raise BiasnbError(f"networks: of other image_size or patch ({sizes}) cannot stand side by side; choose equal ones")
    if not found:
        raise BiasnbError(f"networks: none are named; published are {', '.join(pretrained.published(known))}")
    return found


def labels(models):
    """Return {name: label of its column}, the mixer, or the end of the name if several networks have the same mixer."""
    found = {name: model.cfg.mixer for name, model in models.items()}
    return {name: label if list(found.values()).count(label) == 1 else name[-8:] for name, label in found.items()}


def heat(values, size, top=None):
    """Map (h, w) to (size, size, 3) uint8 by viridis, from 0 to `top`, by default the maximum with exact zeros in white."""
    scaled = np.clip(values / (top or max(values.max(), 1e-12)), 0, 1)
    picture = (matplotlib.colormaps["viridis"](scaled)[..., :3] * 255).round().astype(np.uint8)
    if not top:
        picture[values == 0] = 255
    return picture.repeat(size // len(values), 0).repeat(size // len(values), 1)


class Sheet:
    """A Scene in a figure: columns for the original, the masked image and each network, rows for reconstruction, mixing
    pattern, receptive field and shift."""

    def __init__(self, models, figure):
        cfg = next(iter(models.values())).cfg
        self.models, self.labels, self.size, self.patch = models, labels(models), cfg.image_size, cfg.patch
        self.gap = GAP * self.size // 16
        self.step = self.size + self.gap
        self.columns = 2 + len(models)
        self.blank = np.full((ROWS * self.step, self.columns * self.step - self.gap, 3), 255, np.uint8)
        with matplotlib.rc_context(STYLE):
            figure.clear()
            figure.set_layout_engine("constrained")
            ax = figure.subplots()
            ax.set_axis_off()
            self.image = ax.imshow(self.blank, interpolation="nearest")
            self.marks = ax.plot([], [], "s", mfc="none", mec="#d55e00", ms=9, mew=1.5)[0]
            self.words = {}
            for row, column in product(range(ROWS), range(self.columns)):
                top, left = self.corner(row, column)
                self.words[row, column] = ax.text(left + self.size / 2, top - 1, "", ha="center", va="bottom", fontsize=8.5)
            left, middle = self.step - self.gap / 2, self.gap + self.size / 2
            self.notes = [ax.text(left, row * self.step + middle, "", ha="center", va="center", fontsize=9) for row in (1, 2)]
            footer(figure, SMALL_PRINT)
            figure.draw_without_rendering()
            figure.set_layout_engine(None)  # the layout is computed only once, because it takes longer than drawing

    def corner(self, row, column):
        return row * self.step + self.gap, column * self.step

    def show(self, scene, responses):
        """Draw a Scene and a Response per network."""
        sheet, hidden = self.blank.copy(), pixel_mask(scene.mask[None], self.patch)[0]
        original, masked = scene.image.numpy(), scene.image.where(~hidden[..., None], GREY).numpy()
        pixels, (down, right) = [self.patch * s for s in scene.shift], scene.shift
        shifted = [np.roll(image, pixels, (0, 1)) for image in (original, masked)]
        self.tiles = {(0, 0): original, (0, 1): masked, (3, 0): shifted[0], (3, 1): shifted[1]}
        words = {(0, 0): "original", (0, 1): "masked", (3, 0): f"{down} down,", (3, 1): f"{right} right"}
        for column, (name, response) in enumerate(responses.items(), 2):
            maps = (heat(response.mixing, self.size), heat(response.field, self.size), heat(response.shift_map, self.size, 1))
            self.tiles |= {(row, column): tile for row, tile in enumerate((response.filled, *maps))}
            cfg, (layer, head) = self.models[name].cfg, layer_and_head(self.models[name], scene)
            words[0, column] = self.labels[name] + ("" if response.psnr is None else f" {response.psnr:.1f} dB")
            words[1, column] = f"layer {layer}" + ("" if head is None else f", head {head + 1}")
            words[2, column] = f"L {cfg.depth}, D {cfg.width}"
            words[3, column] = f"error {response.shift_error:.2g}"
        for place, tile in self.tiles.items():
            top, left = self.corner(*place)
            sheet[top : top + self.size, left : left + self.size] = tile
            self.words[place].set_text(words[place])
        self.image.set_data(sheet)
        y, x = ((p + 0.5) * self.patch - 0.5 for p in scene.position)
        corners = [self.corner(*place) for place in self.tiles if place[0] < 3]
        self.marks.set_data([left + x for _, left in corners], [top + y for top, _ in corners])
        self.notes[0].set_text("mixing pattern" + (",\nmean of heads" if scene.head is None else ""))
        self.notes[1].set_text("receptive field\nof the last layer")

    def place(self, x, y):
        """Return (row, column, (token row, token column)) of a point of the axes, or None outside of the images."""
        if x is None or y is None:
            return None
        row, top = divmod(y + 0.5 - self.gap, self.step)
        column, left = divmod(x + 0.5, self.step)
        if top >= self.size or left >= self.size or (row, column) not in self.tiles:
            return None
        return int(row), int(column), (int(top) // self.patch, int(left) // self.patch)
