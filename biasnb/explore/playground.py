"""The playground, an interactive panel: a scene with controls in JupyterLab, and an image of the scene elsewhere."""

import base64
import contextlib
import html
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from ..config import IMAGE_SUFFIXES, BiasnbError, full_path, short
from ..data import images as files
from ..data.datasets import Split, load
from ..figures.style import Picture
from ..records.keys import image_files
from ..records.progress import in_jupyterlab
from ..training import run
from .scene import MASKS, Scene, Sheet, heads_of, networks, respond

__all__ = ["Panel", "networks"]
PAINTED, MEAN = "painted", "mean of heads"
AT_FIRST, AT_MOST = 5, 7  # number of displayed networks, initially and at most
FIGURE = 8.75, 5.45  # inches
MASKED, SHIFTED = (0, 1), 3  # tile of the masked image (row, column); row of the shifted images
WIDTH = {"width": "18em"}
AT_REST = {"continuous_update": False}  # update when the mouse is released or Enter is pressed
HINT = (
    "Click on a picture to look at a position; click or drag over the <b>masked</b> image to hide and to show tokens; "
    f"Ctrl-click to choose up to {AT_MOST} networks."
)


class Panel:
    """Controls and the sheet that they change. Outside of JupyterLab, the panel is displayed as a static image.

    models: {name: network}, as from `networks`, of which the first AT_FIRST are displayed. images: (n, S, S, 3) uint8 to choose
    from, by default the test images of the first network."""

    def __init__(self, models, images=None):
        cfg = next(iter(models.values())).cfg
        self.models, self.grid, self.size = models, cfg.grid, cfg.image_size
        self.images = load(replace(cfg, images=0, labelled=0)).test.images if images is None else images
        self.first = int(run.pictured(Split(self.images, torch.full((len(self.images),), -1)))[0])
        self.rate = cfg.mask_rate
        mask = MASKS["random"](cfg.grid, self.rate, 0)
        self.scene = Scene(self.images[self.first], mask, (cfg.grid // 2, cfg.grid // 2))
        self.figure, self.controls = Picture(figsize=FIGURE, dpi=110), None
        self.last, self.responses = None, {}  # the last Scene, and {name: its Response}
        self.choose(list(models)[:AT_FIRST])

    def choose(self, names):
        """Display these networks, given by their names in `models`."""
        self.responses = {name: self.responses.get(name) for name in names}
        self.sheet = Sheet({name: self.models[name] for name in names}, self.figure)
        self.change()

    def change(self, **fields):
        """Change fields of the Scene and redraw. Returns the panel, so that a cell displays it."""
        self.scene = replace(self.scene, **fields)
        self.responses = {name: respond(self.models[name], self.scene, self.last, r) for name, r in self.responses.items()}
        self.last = self.scene
        self.draw()
        if self.controls:
            self.controls.follow()
        return self

    def draw(self):
        self.sheet.show(self.scene, self.responses)
        if self.controls:
            self.figure.canvas.draw_idle()

    def _repr_mimebundle_(self, **_):
        picture = {"image/png": base64.b64encode(self.figure.png()).decode(), "text/plain": "playground"}
        described = {"image/png": {"alt": f"playground: {', '.join(self.responses)}"}}
        if not in_jupyterlab():
            return picture, described
        self.controls = self.controls or Controls(self)
        return picture | self.controls.box._repr_mimebundle_(), described


def named(text):
    """Return the keyword arguments of widgets with a description to their left."""
    return {"description": text, "style": {"description_width": "6em"}, "layout": WIDTH}


class Controls:
    """The widgets of a Panel, which change its Scene."""

    def __init__(self, panel):
        import ipywidgets as w

        self.panel, self.painting, self.seed = panel, None, 0
        deepest = max(model.cfg.depth for model in panel.models.values())
        heads = max(map(heads_of, panel.models.values()))
        each = [(f"head {i + 1}", i) for i in range(heads)]
        self.source = w.ToggleButtons(options=["test set", "folder", "upload"], style={"button_width": "5.5em"})
        self.index = w.IntSlider(panel.first, 0, len(panel.images) - 1, **named("number"), **AT_REST)
        self.folder = w.Text(placeholder="a folder with images", **named("folder"), **AT_REST)
        self.upload = w.FileUpload(accept=",".join(IMAGE_SUFFIXES), description="choose a file", layout=WIDTH)
        self.rule = w.Dropdown(options=[*MASKS, PAINTED], **named("mask"))
        self.rate = w.FloatSlider(panel.rate, min=0.05, max=0.95, step=0.05, **named("rate"), **AT_REST)
        self.again = w.Button(description="draw another mask", icon="random", layout=WIDTH)
        self.layer = w.IntSlider(1, 1, deepest, **named("layer"), **AT_REST)
        self.head = w.Dropdown(options=[(MEAN, MEAN), *each], **named("head"))
        self.down = w.IntSlider(0, 0, panel.grid - 1, **named("shift down"), **AT_REST)
        self.right = w.IntSlider(0, 0, panel.grid - 1, **named("shift right"), **AT_REST)
        self.chosen = w.SelectMultiple(options=list(panel.models), value=list(panel.responses), rows=5, **named("networks"))
        self.trouble = w.HTML()
        columns = (
            (self.source, self.index, self.folder, self.upload),
            (self.rule, self.rate, self.again),
            (self.layer, self.head, self.down, self.right),
            (self.chosen,),
        )
        row = w.HBox([w.VBox(column) for column in columns], layout={"flex_flow": "row wrap"})
        self.box = w.VBox([row, w.HTML(HINT), self.trouble, self.canvas()])
        self.follow()
        self.show_source()
        self.connect()

    def connect(self):
        """Change the Scene whenever a widget changes."""
        self.source.observe(self.show_source, "value")
        for widget in (self.source, self.index, self.folder, self.upload):
            widget.observe(self.choose, "value")
        for widget in (self.rule, self.rate):
            widget.observe(self.mask, "value")
        self.again.on_click(self.draw_again)
        self.layer.observe(lambda change: self.panel.change(layer=change["new"]), "value")
        self.head.observe(lambda change: self.panel.change(head=None if change["new"] == MEAN else change["new"]), "value")
        for widget in (self.down, self.right):
            widget.observe(lambda _: self.panel.change(shift=(self.down.value, self.right.value)), "value")
        self.chosen.observe(self.networks, "value")

    def canvas(self):
        """Return the figure of the panel as a widget that handles mouse events."""
        from ipympl.backend_nbagg import Canvas, FigureManager

        canvas = Canvas(self.panel.figure)
        FigureManager(canvas, 1)
        canvas.toolbar_visible = canvas.header_visible = canvas.footer_visible = canvas.resizable = False
        canvas.mpl_connect("button_press_event", self.press)
        canvas.mpl_connect("motion_notify_event", self.drag)
        canvas.mpl_connect("button_release_event", self.release)
        return canvas

    def networks(self, *_):
        with self.errors_shown():
            if not 0 < len(self.chosen.value) <= AT_MOST:
                raise BiasnbError(f"networks: {len(self.chosen.value)} are chosen; choose 1 to {AT_MOST}")
            self.panel.choose(self.chosen.value)

    def follow(self):
        """Update the widgets to the current Scene."""
        scene = self.panel.scene
        (self.down.value, self.right.value), self.layer.value = scene.shift, scene.layer
        self.head.value = MEAN if scene.head is None else scene.head

    @contextlib.contextmanager
    def errors_shown(self):
        """Within the block, display an error of a choice in one line and leave the images unchanged."""
        try:
            self.trouble.value = ""
            yield
        except (BiasnbError, OSError) as error:
            self.trouble.value = f"<span style='color:#b00'>{html.escape(str(error))}</span>"

    def show_source(self, *_):
        source = self.source.value
        self.folder.layout.display = None if source == "folder" else "none"
        self.upload.layout.display = None if source == "upload" else "none"
        self.index.layout.display = "none" if source == "upload" else None

    def choose(self, *_):
        with self.errors_shown():
            image = {"test set": self.embedded, "folder": self.in_folder, "upload": self.uploaded}[self.source.value]()
            if image is not None:
                self.panel.change(image=image)

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
            path = Path(folder) / "your file"
            path.write_bytes(self.upload.value[0]["content"])
            with contextlib.chdir(folder):  # error messages then show the file name only
                return read(Path(path.name), self.panel.size)

    def mask(self, *_):
        self.rate.disabled = self.again.disabled = self.rule.value != "random"
        if self.rule.value != PAINTED:
            self.panel.change(mask=MASKS[self.rule.value](self.panel.grid, self.rate.value, self.seed))

    def draw_again(self, _):
        self.seed += 1
        self.mask()

    def place(self, event):
        """Return (whether it is on the masked image, token) at the mouse, or None; shifted images are ignored."""
        place = self.panel.sheet.place(event.xdata, event.ydata)
        return (place[:2] == MASKED, place[2]) if place and place[0] < SHIFTED else None

    def press(self, event):
        if not (place := self.place(event)):
            return
        on_masked, token = place
        if on_masked:
            self.painting = not self.panel.scene.mask[token]
            self.paint(token)
        else:
            self.panel.change(position=token)

    def drag(self, event):
        if self.painting is not None and (place := self.place(event)) and place[0]:
            self.paint(place[1])

    def paint(self, token):
        """Hide or show one token. The networks are evaluated when the mouse button is released."""
        panel = self.panel
        if bool(panel.scene.mask[token]) != bool(self.painting):
            mask = panel.scene.mask.clone()
            mask[token] = self.painting
            panel.scene = replace(panel.scene, mask=mask)
            panel.draw()

    def release(self, _):
        if self.painting is not None:
            self.painting = None
            self.rule.value = PAINTED
            self.panel.change()


def pictures_in(folder):
    """Return the image files in a folder and its subfolders. Raises BiasnbError if there are none."""
    top = full_path(folder)
    if not top.is_dir():
        raise BiasnbError(f"folder: {short(folder)} is not a folder; choose another")
    found = [top / path for path in image_files(top)[0]]
    if not found:
        raise BiasnbError(f"folder: {short(folder)} holds no image ({', '.join(IMAGE_SUFFIXES)}); choose another")
    return found


def read(path, size):
    """Read an image file as a (size, size, 3) uint8 tensor. Raises DataError naming the file."""
    return torch.from_numpy(files.resize(files.decode(path)[None], size)[0])
