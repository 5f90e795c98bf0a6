"""The playground: what it shows is what the measures say, and its controls change it. A browser moves them in test_lab."""

import base64
import io
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import biasnb
from biasnb import measure, playground, scene
from biasnb.config import BiasnbError, configure
from biasnb.model import build
from biasnb.playground import Controls, Panel
from biasnb.pretext import pixel_mask, psnr
from biasnb.proof import STATS
from biasnb.scene import MASKS, Sheet, View, look, networks

NAMES = ["conv", "attn", "mixer"]
FILE = {"name": "x.png", "type": "image/png", "size": 1, "last_modified": datetime.now(UTC)}


@pytest.fixture(scope="module")
def models():
    return networks(NAMES)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (3, 16, 16, 3), np.uint8))


@pytest.fixture
def panel(models, images):
    return Panel(dict(models), images)


@pytest.fixture
def controls(panel):
    return Controls(panel)


def at(sheet, row, column, token):
    """A mouse event over a token of a tile."""
    top, left = sheet.corner(row, column)
    return SimpleNamespace(xdata=left + token[1] * sheet.patch + 0.3, ydata=top + token[0] * sheet.patch + 0.3)


def pixels(panel):
    return np.asarray(panel.sheet.image.get_array())


def tile(panel, row, column):
    top, left = panel.sheet.corner(row, column)
    return pixels(panel)[top : top + 16, left : left + 16]


@pytest.mark.parametrize("grid", [2, 4, 5, 8])
def test_every_mask_rule_hides_some_tokens_and_shows_some(grid):
    hidden = {name: rule(grid, 0.5, 3) for name, rule in MASKS.items()}
    for name, mask in hidden.items():
        assert mask.shape == (grid, grid) and mask.dtype == torch.bool and 0 < mask.sum() < grid**2, name
    assert not hidden["lower half"][0].any() and hidden["lower half"][-1].all()
    assert hidden["every second row"].any(1).tolist() == [i % 2 == 1 for i in range(grid)]
    square = hidden["centre square"]
    assert square.equal(square.T) and (square.equal(square.flip(0)) or grid == 2)
    assert square.sum() == {2: 1, 4: 4, 5: 9, 8: 16}[grid]


def test_a_sight_is_what_the_measures_say(models, images):
    view = View(images[0], MASKS["lower half"](8, 0, 0), (6, 2), 2, 1, (1, 3))
    hidden = pixel_mask(view.mask[None], 2)[0]
    for name, model in models.items():
        sight = look(model, view)
        assert np.array_equal(sight.filled[~hidden], images[0][~hidden])
        error = (torch.from_numpy(sight.filled)[hidden].float() - images[0][hidden].float()).square()
        assert sight.psnr == pytest.approx(psnr(float(error.sum()), error.numel()), abs=0.01), name  # whole colours
        assert sight.field.sum() == pytest.approx(1) and (sight.field[hidden] == 0).all()
        assert sight.error > 0 and sight.moved.shape == (8, 8)
    whole = View(images[0], torch.zeros(8, 8, dtype=torch.bool), (3, 3))
    assert look(models["conv"], whole).psnr is None
    centre = View(images[0], torch.zeros(8, 8, dtype=torch.bool), (4, 4), shift=(1, 2))
    for model in models.values():
        assert look(model, centre).error == pytest.approx(measure.roll_error(model, images[:1])[-1], rel=1e-5)
        assert np.allclose(look(model, centre).field, measure.receptive_field(model, images[:1])["map"], atol=1e-6)


def test_convolution_mixes_the_same_window_everywhere_and_attention_another_pattern(models, images):
    shown = torch.zeros(8, 8, dtype=torch.bool)
    sights = {
        name: [look(model, View(images[0], shown, place)) for place in ((3, 3), (4, 5))] for name, model in models.items()
    }
    one, other = (sight.mixing for sight in sights["conv"])
    assert (one > 0).sum() == 25 and np.array_equal(one[1:6, 1:6], other[2:7, 3:8])
    one, other = (sight.mixing for sight in sights["attn"])
    assert (one > 0).all() and one.sum() == pytest.approx(1, rel=1e-5) and not np.allclose(one, other)


def test_the_pattern_of_an_operator_without_a_matrix_is_that_of_its_matrix_where_it_has_both(images):
    """The norm of the Jacobian block of a static operator with one head is |A_ij| times the norm of W_V W_O."""
    model = build(configure("quick", mixer="full", heads=1, width=32, depth=1), STATS)
    row = measure.mixing_row(model, images[:1], (2, 5), 1)
    mix = model.stack[0].mix
    _, calls = measure.observe(model, measure.encoded(model, images[:1]), [mix])
    norms = measure.block_norms(mix, calls[0][1], (2, 5)).detach()
    scale = (mix.value.weight.T @ mix.out.weight.T).norm()
    assert torch.allclose(norms, row * scale, rtol=1e-4, atol=1e-7)


def test_a_repeated_block_and_a_layer_too_deep_are_shown_too(images):
    model = build(configure("quick", mixer="attn", blocks="repeated", depth=3, width=32, heads=2), STATS)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    rows = [look(model, View(images[0], mask, (1, 1), layer)).mixing for layer in (1, 3, 9)]
    assert not np.allclose(rows[0], rows[1]) and np.array_equal(rows[1], rows[2])
    assert look(model, View(images[0], mask, (1, 1), 1, head=7)).mixing.shape == (8, 8)


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"shift": (2, 2)}, ("filled", "mixing", "field")),
        ({"position": (0, 0)}, ("filled", "moved")),
        ({"layer": 2}, ("filled", "field", "moved")),
        ({"mask": MASKS["centre square"](8, 0, 0)}, ()),
        ({}, ("filled", "mixing", "field", "moved")),
    ],
)
def test_what_did_not_change_is_not_computed_again_and_the_result_is_that_of_a_fresh_look(panel, fields, same):
    before = dict(panel.sights)
    panel.change(**fields)
    for name, model in panel.models.items():
        fresh = look(model, panel.view)
        for part in ("filled", "mixing", "field", "moved"):
            now = getattr(panel.sights[name], part)
            assert np.array_equal(now, getattr(fresh, part))
            assert (now is getattr(before[name], part)) == (part in same), part


def test_networks_are_found_by_name_by_key_and_by_folder_and_must_go_together(models, root, monkeypatch):
    from biasnb import run, store

    cfg = configure("smoke", mixer="lc")
    own = run.run(cfg, store.Store("smoke"))
    assert list(networks([own["key"]], "smoke")) == [own["key"]]
    biasnb.pretrained.folder("smoke").parent.mkdir(parents=True)
    monkeypatch.undo()
    folder = str(biasnb.pretrained.folder("quick") / "conv")
    assert networks([folder])[folder].cfg == models["conv"].cfg
    with pytest.raises(BiasnbError, match=r"'cov' is not published .* there are attn, conv"):
        networks(["cov"])
    with pytest.raises(BiasnbError, match="none are named; published are attn"):
        networks([])


def test_networks_of_other_tasks_and_sizes_are_refused(root, models, tmp_path):
    from biasnb import run, store

    keys = [
        run.run(configure("smoke", **fields), store.Store("smoke"))["key"] for fields in ({"pretext": "denoise"}, {"patch": 4})
    ]
    with pytest.raises(BiasnbError, match="pretext 'denoise', it fills no holes"):
        networks(keys[:1], "smoke")
    small = run.run(configure("smoke"), store.Store("smoke"))["key"]
    with pytest.raises(BiasnbError, match=r"other image_size or patch .* cannot stand side by side"):
        networks([keys[1], small], "smoke")


def test_the_sheet_shows_every_picture_where_it_belongs(panel, images):
    view = panel.view
    hidden = pixel_mask(view.mask[None], 2)[0].numpy()
    assert np.array_equal(tile(panel, 0, 0), view.image)
    assert (tile(panel, 0, 1)[hidden] == scene.GREY).all() and np.array_equal(tile(panel, 0, 1)[~hidden], view.image[~hidden])
    assert np.array_equal(tile(panel, 3, 0), view.image.roll((2, 4), (0, 1)))
    for column, sight in enumerate(panel.sights.values(), 2):
        assert np.array_equal(tile(panel, 0, column), sight.filled)
        assert (tile(panel, 1, column)[::2, ::2].reshape(-1, 3) == 255).all(1).sum() == (sight.mixing == 0).sum()
    words = [panel.sheet.words[0, column].get_text() for column in range(2, 5)]
    assert [word.split()[0] for word in words] == ["conv", "attn", "Mixer"] and all(word.endswith("dB") for word in words)


def test_places_of_the_mouse_are_tokens_of_tiles_and_nothing_between(panel):
    sheet = panel.sheet
    for row, column, token in ((0, 0, (0, 0)), (0, 1, (7, 7)), (2, 4, (3, 5))):
        event = at(sheet, row, column, token)
        assert sheet.place(event.xdata, event.ydata) == (row, column, token)
    top, left = sheet.corner(1, 2)
    for x, y in ((left - 2, top + 1), (left + 1, top - 2), (-5, 5), (5, 1e6), (None, None)):
        assert sheet.place(x, y) is None


def test_without_a_live_front_end_the_panel_is_a_picture(panel, monkeypatch):
    monkeypatch.setattr(playground, "in_jupyterlab", lambda: False)
    bundle = panel._repr_mimebundle_()
    assert set(bundle) == {"image/png", "text/plain"}
    with Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))) as image:
        assert image.size[0] > 800


def test_in_jupyterlab_it_is_a_widget_with_the_picture_for_those_who_have_none(panel, monkeypatch):
    monkeypatch.setattr(playground, "in_jupyterlab", lambda: True)
    assert set(panel._repr_mimebundle_()) >= {"image/png", "application/vnd.jupyter.widget-view+json"}


def test_every_control_changes_the_view_and_the_picture(panel, controls, images):
    def moved(act):
        before, view = pixels(panel).copy(), panel.view
        act()
        assert panel.view is not view and not np.array_equal(before, pixels(panel))
        return panel.view

    other = (panel.first + 1) % 3
    assert moved(lambda: setattr(controls.index, "value", other)).image.equal(images[other])
    for rule in ("centre square", "every second row", "lower half"):
        assert moved(lambda rule=rule: setattr(controls.rule, "value", rule)).mask.equal(MASKS[rule](8, 0, 0))
        assert controls.rate.disabled
    moved(lambda: setattr(controls.rule, "value", "random"))
    assert moved(lambda: setattr(controls.rate, "value", 0.9)).mask.float().mean() > 0.7
    mask = panel.view.mask
    assert not moved(controls.again.click).mask.equal(mask)
    assert moved(lambda: setattr(controls.layer, "value", 2)).layer == 2
    assert moved(lambda: setattr(controls.head, "value", 1)).head == 1
    assert moved(lambda: setattr(controls.down, "value", 4)).shift == (4, 2)
    assert moved(lambda: setattr(controls.right, "value", 0)).shift == (4, 0)
    assert moved(lambda: controls.press(at(panel.sheet, 0, 3, (2, 6)))).position == (2, 6)


def test_a_mask_is_painted_by_dragging_and_what_networks_make_of_it_is_drawn_at_the_end(panel, controls):
    panel.change(mask=torch.zeros(8, 8, dtype=torch.bool))
    before = panel.sights
    controls.press(at(panel.sheet, 0, 1, (2, 2)))
    for token in ((2, 3), (2, 3), (2, 4)):
        controls.drag(at(panel.sheet, 0, 1, token))
    controls.drag(at(panel.sheet, 0, 2, (5, 5)))  # outside the masked image
    assert panel.sights is before and panel.view.mask.nonzero().tolist() == [[2, 2], [2, 3], [2, 4]]
    assert (tile(panel, 0, 1)[4:6, 4:10] == scene.GREY).all()
    controls.release(None)
    assert panel.sights["conv"].psnr is not None and controls.rule.value == "painted"
    controls.press(at(panel.sheet, 0, 1, (2, 3)))  # a hidden one is shown again
    controls.release(None)
    assert panel.view.mask.nonzero().tolist() == [[2, 2], [2, 4]]


def test_other_networks_are_chosen_and_too_many_or_none_refused(panel, controls, monkeypatch):
    controls.chosen.value = ("mixer",)
    assert list(panel.sights) == ["mixer"] and panel.sheet.columns == 3
    controls.chosen.value = ()
    assert "choose 1 to" in controls.trouble.value and list(panel.sights) == ["mixer"]
    controls.chosen.value = ("conv", "attn")
    assert controls.trouble.value == "" and list(panel.sights) == ["conv", "attn"]


def test_images_come_from_a_folder_or_an_upload_and_trouble_is_said_in_a_line(panel, controls, tmp_path):
    picture = np.full((20, 30, 3), 200, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.png").write_bytes(buffer.getvalue())
    (tmp_path / "b.JPG").write_bytes(b"none")
    shown = panel.view
    controls.source.value = "folder"
    assert panel.view is shown and controls.upload.layout.display == "none"
    controls.folder.value = str(tmp_path / "nowhere")
    assert "holds no JPEG or PNG image" in controls.trouble.value and panel.view is shown
    controls.index.value = 0
    controls.folder.value = str(tmp_path)
    assert "b.JPG: not readable" in controls.trouble.value and panel.view is shown
    controls.index.value = 1
    assert (panel.view.image == 200).all() and controls.trouble.value == "" and controls.index.max == 1
    controls.source.value = "upload"
    controls.upload.value = ({**FILE, "content": memoryview(b"<script>")},)
    assert "not readable as a JPEG or PNG" in controls.trouble.value and "<script>" not in controls.trouble.value
    controls.upload.value = ({**FILE, "content": memoryview(buffer.getvalue())},)
    assert (panel.view.image == 200).all() and controls.trouble.value == ""
    controls.source.value = "test set"
    assert not (panel.view.image == 200).all()


def test_a_sheet_takes_images_of_other_sizes_and_one_network():
    model = build(configure("quick", mixer="conv", image_size=32, patch=4, width=32, heads=2, depth=1), STATS)
    from biasnb.style import Picture

    sheet = Sheet({"x": model}, Picture())
    image = torch.zeros(32, 32, 3, dtype=torch.uint8)
    view = View(image, MASKS["random"](8, 0.5, 0), (7, 7))
    sheet.show(view, {"x": look(model, view)})
    assert sheet.image.get_array().shape[0] == 4 * (32 + 8)
