"""A panel to play with: one image under one mask, what networks make of it, where a position reads from, what a shift does."""

import base64
import contextlib
import html
import tempfile
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch

from . import images as files
from . import pretrained, run
from .config import IMAGE_SUFFIXES, BiasnbError, short
from .data import Split, generator, load
from .measure import mixing_row, rolled, sensitivity
from .pretext import draw_mask, pixel_mask, predicted_pixels, psnr, reconstruct
from .progress import in_jupyterlab
from .store import Store
from .style import LABELS, STYLE, Picture, footer

GREY, GAP = 128, 4  # of a hidden token; pixels between tiles for what stands above them, for images of 16 pixels
ROWS = 4  # reconstruction, mixing pattern, receptive field, shift
PAINTED = "painted"


def middle(grid):
    place = (torch.arange(grid) - (grid - 1) / 2).abs() < grid / 4
    return place[:, None] & place


# Mask rules: name -> function of (tokens per side, rate, seed), (H, W) bool, True where hidden.
MASKS = {
    "random": lambda grid, rate, seed: draw_mask(1, grid, rate, generator("cpu", seed, "playground"))[0],
    "centre square": lambda grid, rate, seed: middle(grid),
    "every second row": lambda grid, rate, seed: (torch.arange(grid) % 2 == 1)[:, None].expand(grid, grid),
    "lower half": lambda grid, rate, seed: (torch.arange(grid) >= grid / 2)[:, None].expand(grid, grid),
}


@dataclass(frozen=True)
class View:
    """What is looked at: image (S, S, 3) uint8; mask (H, W), True where hidden; position (row, column), in tokens; layer, 1 to
    L of networks that have it, else their last; head, from 0, or None for the mean; shift (rows, columns), in tokens."""

    image: torch.Tensor
    mask: torch.Tensor
    position: tuple
    layer: int = 1
    head: int | None = None
    shift: tuple = (1, 2)


class Sight(NamedTuple):
    """What one network makes of a View: the image with its holes filled, (S, S, 3) uint8; PSNR on them in dB, None without
    any; `mixing_row` (H, W); `sensitivity` (S, S); per token of h^L the relative error |h(T x) - T h(x)| / |h(x)| of a shift T
    (H, W), and that of all of them."""

    filled: np.ndarray
    psnr: float | None
    mixing: np.ndarray
    field: np.ndarray
    moved: np.ndarray
    error: float


def look(model, view):
    """The Sight of a network on one View."""
    image, mask = view.image[None], view.mask[None]
    filled = reconstruct(model, image, mask)
    missed = (filled - image.float())[predicted_pixels(model, image, mask)]
    layer, heads = min(view.layer, model.cfg.depth), getattr(model.stack[0].mix, "heads", 1)
    head = None if view.head is None else min(view.head, heads - 1)
    error, still = rolled(model, image, view.shift, mask)[-1]
    return Sight(
        filled[0].round().byte().numpy(),
        psnr(float(missed.square().sum()), missed.numel()) if missed.numel() else None,
        mixing_row(model, image, view.position, layer, head, mask).numpy(),
        sensitivity(model, image, view.position, mask).numpy(),
        (error[0].norm(dim=2) / still[0].norm(dim=2)).numpy(),
        float(error.norm() / still.norm()),
    )


def networks(names, profile="quick"):
    """{name: network} of published networks by their names, of your own runs in runs/<profile> by their keys, and of folders
    with config.json and model.safetensors by their paths. Where a profile has published none, those of `quick` are taken.

    Raises BiasnbError for a name that is none of these, and for networks that cannot stand side by side."""
    known = profile if pretrained.folder(profile).is_dir() else "quick"
    found = {}
    for name in names:
        own = "/" not in name and Store(profile).has(name)
        model = run.restore(name, Store(profile))[2].cpu() if own else pretrained.network(name, known)
        if model.cfg.pretext != "bert":
            raise BiasnbError(f"network: {short(name)} was trained with pretext {model.cfg.pretext!r}, it fills no holes; choose another")
        found[name] = model
    sizes = {name: (model.cfg.image_size, model.cfg.patch) for name, model in found.items()}
    if len(set(sizes.values())) > 1:
        raise BiasnbError(f"networks: of other image_size or patch ({sizes}) cannot stand side by side; choose equal ones")
    if not found:
        raise BiasnbError(f"networks: none are named; published are {', '.join(pretrained.published(known))}")
    return found


def heat(values, size, top=None):
    """(h, w) -> (size, size, 3) uint8 by viridis, up to `top` or the largest value; exact zeros are white."""
    scaled = np.clip(values / (top or max(values.max(), 1e-12)), 0, 1)
    picture = (matplotlib.colormaps["viridis"](scaled)[..., :3] * 255).round().astype(np.uint8)
    picture[values == 0] = 255
    return picture.repeat(size // len(values), 0).repeat(size // len(values), 1)


class Sheet:
    """The panel as one figure: a row of pictures per question, a column for the original, the masked image, each network."""

    def __init__(self, models):
        cfg = next(iter(models.values())).cfg
        self.models, self.size, self.patch = models, cfg.image_size, cfg.patch
        self.gap = GAP * self.size // 16
        self.step = self.size + self.gap
        self.columns = 2 + len(models)
        self.blank = np.full((ROWS * self.step, self.columns * self.step - self.gap, 3), 255, np.uint8)
        with matplotlib.rc_context(STYLE):
            self.figure = Picture(figsize=(1.45 * self.columns, 1.45 * ROWS + 0.45), layout="constrained")
            ax = self.figure.subplots()
            ax.set_axis_off()
            self.image = ax.imshow(self.blank, interpolation="nearest")
            self.marks = ax.plot([], [], "s", mfc="none", mec="#d55e00", ms=9, mew=1.5)[0]
            self.words = {}
            for row, column in product(range(ROWS), range(self.columns)):
                top, left = self.corner(row, column)
                self.words[row, column] = ax.text(left + self.size / 2, top - 1, "", ha="center", va="bottom", fontsize=8.5)
            self.notes = [ax.text(self.step - self.gap / 2, self.corner(row, 0)[0] + self.size / 2, "", ha="center", va="center",
                                  fontsize=9) for row in (1, 2)]  # fmt: skip
            footer(self.figure, "Square: the position that is looked at. Its maps are each over their own maximum, white is exactly 0. Shift: "
                   "relative error of each token's features, dark 0, bright 1 or more.")  # fmt: skip
            self.figure.draw_without_rendering()
            self.figure.set_layout_engine(None)  # laid out once: it takes longer than drawing

    def corner(self, row, column):
        return row * self.step + self.gap, column * self.step

    def show(self, view, sights):
        """Draw a View and a Sight per network."""
        sheet, hidden = self.blank.copy(), pixel_mask(view.mask[None], self.patch)[0]
        original, masked = view.image.numpy(), view.image.where(~hidden[..., None], GREY).numpy()
        pixels, (down, right) = [self.patch * s for s in view.shift], view.shift
        tiles = {(0, 0): original, (0, 1): masked, (3, 0): np.roll(original, pixels, (0, 1)), (3, 1): np.roll(masked, pixels, (0, 1))}
        words = {(0, 0): "original", (0, 1): "masked", (3, 0): f"{down} down,", (3, 1): f"{right} right"}
        for column, (name, sight) in enumerate(sights.items(), 2):
            tiles |= {(0, column): sight.filled, (1, column): heat(sight.mixing, self.size)}
            tiles |= {(2, column): heat(sight.field, self.size), (3, column): heat(sight.moved, self.size, 1)}
            label = LABELS[self.models[name].cfg.mixer].partition(" (")[0]
            words[0, column] = label if sight.psnr is None else f"{label} {sight.psnr:.1f} dB"
            words[3, column] = f"error {sight.error:.2g}"
        for place, tile in tiles.items():
            top, left = self.corner(*place)
            sheet[top : top + self.size, left : left + self.size] = tile
            self.words[place].set_text(words.get(place, ""))
        self.image.set_data(sheet)
        y, x = ((p + 0.5) * self.patch - 0.5 for p in view.position)
        corners = [self.corner(*place) for place in tiles if place[0] < 3]
        self.marks.set_data([left + x for _, left in corners], [top + y for top, _ in corners])
        head = "mean of heads" if view.head is None else f"head {view.head + 1}"
        for note, text in zip(self.notes, (f"mixing pattern,\nlayer {view.layer}, {head}", "receptive field\nof the last layer"), strict=True):
            note.set_text(text)

    def place(self, x, y):
        """(row, column, (token row, token column)) of a point of the axes, or None between tiles."""
        if x is None or y is None:
            return None
        row, top = divmod(y + 0.5 - self.gap, self.step)
        column, left = divmod(x + 0.5, self.step)
        if top >= self.size or left >= self.size or not (0 <= row < ROWS and 0 <= column < self.columns):
            return None
        return int(row), int(column), (int(top) // self.patch, int(left) // self.patch)


@dataclass
class Panel:
    """Controls, and the sheet that they change. In JupyterLab with live controls, elsewhere a picture of its first state.

    models: {name: network}, as from `networks`; images: (n, S, S, 3) uint8 to choose from, by default the test images that the
    networks were measured on."""

    models: dict
    images: torch.Tensor | None = None
    sheet: Sheet = field(init=False)

    def __post_init__(self):
        cfg = next(iter(self.models.values())).cfg
        if self.images is None:
            self.images = load(replace(cfg, images=0, labelled=0)).test.images
        self.grid, self.size = cfg.grid, cfg.image_size
        self.sheet = Sheet(self.models)
        start = run.shown(Split(self.images, None))[0]
        self.view = View(self.images[start], MASKS["random"](cfg.grid, cfg.mask_rate, 0), (cfg.grid // 2, cfg.grid // 2))
        self.draw()

    def change(self, **fields):
        """Look at something else: fields of a View."""
        self.view = replace(self.view, **fields)
        self.draw()

    def draw(self):
        self.sights = {name: look(model, self.view) for name, model in self.models.items()}
        self.sheet.show(self.view, self.sights)

    def _repr_mimebundle_(self, **_):
        picture = {"image/png": base64.b64encode(self.sheet.figure._repr_png_()).decode(), "text/plain": "playground"}
        if not in_jupyterlab():
            return picture
        if not hasattr(self, "box"):
            self.box = Controls(self).box
        return picture | self.box._repr_mimebundle_()


class Controls:
    """The widgets of a Panel: each changes its View."""

    def __init__(self, panel):
        import ipywidgets as w
        from ipympl.backend_nbagg import Canvas, FigureManager

        self.panel, self.painting = panel, None
        deepest = max(model.cfg.depth for model in panel.models.values())
        heads = max(getattr(model.stack[0].mix, "heads", 1) for model in panel.models.values())
        wide = {"style": {"description_width": "6em"}, "layout": {"width": "21em"}}
        slider = lambda value, low, high, name: w.IntSlider(value, low, high, description=name, continuous_update=False, **wide)  # noqa: E731
        self.source = w.ToggleButtons(options=["test images", "folder", "upload"], description="image", style={"description_width": "6em", "button_width": "7em"})
        first = next(i for i, image in enumerate(panel.images) if image.equal(panel.view.image))
        self.index = slider(first, 0, len(panel.images) - 1, "number")
        self.folder = w.Text(description="folder", placeholder="a folder with JPEG or PNG files", continuous_update=False, **wide)
        self.upload = w.FileUpload(accept=",".join(IMAGE_SUFFIXES), description="choose a file", layout={"width": "21em"})
        self.rule = w.Dropdown(options=[*MASKS, PAINTED], description="mask", **wide)
        self.rate = w.FloatSlider(0.5, min=0.05, max=0.95, step=0.05, description="rate", continuous_update=False, **wide)
        self.again = w.Button(description="draw another mask", icon="random", layout={"width": "21em"})
        self.layer = slider(1, 1, deepest, "layer")
        self.head = w.Dropdown(options=[("mean of heads", None), *((f"head {i + 1}", i) for i in range(heads))], description="head", **wide)
        self.down = slider(1, 0, panel.grid - 1, "shift down")
        self.right = slider(2, 0, panel.grid - 1, "shift right")
        self.trouble = w.HTML()
        self.seed = 0
        canvas = Canvas(panel.sheet.figure)
        FigureManager(canvas, 1)
        canvas.toolbar_visible = canvas.header_visible = canvas.footer_visible = canvas.resizable = False
        canvas.layout.width = "auto"
        hint = w.HTML("Click on a picture to look at a position; click or drag over the <b>masked</b> image to hide and to show tokens.")
        columns = [w.VBox(part) for part in ((self.source, self.index, self.folder, self.upload), (self.rule, self.rate, self.again),
                                             (self.layer, self.head), (self.down, self.right))]  # fmt: skip
        self.box = w.VBox([w.HBox(columns, layout={"flex_flow": "row wrap"}), hint, self.trouble, canvas])
        self.sources()
        self.source.observe(self.sources, "value")
        for widget in (self.source, self.index, self.folder, self.upload):
            widget.observe(self.choose, "value")
        for widget in (self.rule, self.rate):
            widget.observe(self.mask, "value")
        self.again.on_click(self.redraw)
        self.layer.observe(lambda change: self.change(layer=change["new"]), "value")
        self.head.observe(lambda change: self.change(head=change["new"]), "value")
        for widget in (self.down, self.right):
            widget.observe(lambda _: self.change(shift=(self.down.value, self.right.value)), "value")
        canvas.mpl_connect("button_press_event", self.press)
        canvas.mpl_connect("motion_notify_event", self.drag)
        canvas.mpl_connect("button_release_event", self.release)

    def change(self, **fields):
        self.panel.change(**fields)
        self.panel.sheet.figure.canvas.draw_idle()

    @contextlib.contextmanager
    def told(self):
        """Trouble with what was chosen is said in one line, and what was shown stays."""
        try:
            self.trouble.value = ""
            yield
        except BiasnbError as error:
            self.trouble.value = f"<span style='color:#b00'>{html.escape(str(error))}</span>"

    def sources(self, *_):
        shown = self.source.value
        self.folder.layout.display = None if shown == "folder" else "none"
        self.upload.layout.display = None if shown == "upload" else "none"
        self.index.layout.display = "none" if shown == "upload" else None

    def choose(self, *_):
        with self.told():
            image = {"test images": self.embedded, "folder": self.in_folder, "upload": self.uploaded}[self.source.value]()
            if image is not None:
                self.change(image=image)

    def embedded(self):
        self.index.max = len(self.panel.images) - 1
        return self.panel.images[self.index.value]

    def in_folder(self):
        if not self.folder.value:
            return None
        found = pictures_in(self.folder.value)
        self.index.max = len(found) - 1
        return read(found[self.index.value], self.panel.size)

    def uploaded(self):
        if not self.upload.value:
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image"
            path.write_bytes(self.upload.value[0]["content"])
            return read(path, self.panel.size)

    def mask(self, *_):
        self.rate.disabled = self.again.disabled = self.rule.value != "random"
        if self.rule.value != PAINTED:
            self.change(mask=MASKS[self.rule.value](self.panel.grid, self.rate.value, self.seed))

    def redraw(self, _):
        self.seed += 1
        self.mask()

    def press(self, event):
        place = self.panel.sheet.place(event.xdata, event.ydata)
        if place and place[:2] == (0, 1):
            self.painting = not self.panel.view.mask[place[2]]
            self.paint(place[2])
        elif place:
            self.change(position=place[2])

    def drag(self, event):
        place = self.panel.sheet.place(event.xdata, event.ydata)
        if self.painting is not None and place and place[:2] == (0, 1):
            self.paint(place[2])

    def paint(self, token):
        """Hide or show one token; what networks make of it is drawn when the button is released."""
        panel = self.panel
        if bool(panel.view.mask[token]) != bool(self.painting):
            mask = panel.view.mask.clone()
            mask[token] = self.painting
            panel.view = replace(panel.view, mask=mask)
            panel.sheet.show(panel.view, panel.sights)
            panel.sheet.figure.canvas.draw_idle()

    def release(self, _):
        if self.painting is not None:
            self.painting = None
            self.rule.value = PAINTED
            self.change()


def pictures_in(folder):
    """Image files in a folder and below. Raises BiasnbError if there are none."""
    top = Path(folder).expanduser()
    found = sorted(path for path in top.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES) if top.is_dir() else []
    if not found:
        raise BiasnbError(f"folder: {short(folder)} holds no JPEG or PNG image; choose another")
    return found


def read(path, size):
    """(size, size, 3) uint8 tensor from an image file. Raises DataError naming it."""
    return torch.from_numpy(files.resize(files.decode(path)[None], size)[0])
