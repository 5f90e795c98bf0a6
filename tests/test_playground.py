"""The playground: what it shows is what the measures say, and its controls change it. A browser moves them in test_lab."""

import base64
import io
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from biasnb.config import BiasnbError, configure
from biasnb.explore import playground, scene
from biasnb.explore.checks import STATS
from biasnb.explore.playground import Controls, Panel
from biasnb.explore.scene import MASKS, Scene, Sheet, networks, respond
from biasnb.networks import pretrained
from biasnb.networks.model import build
from biasnb.training import measures as measure
from biasnb.training.pretext import pixel_mask, psnr

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


def test_a_response_is_what_the_measures_say(models, images):
    view = Scene(images[0], MASKS["lower half"](8, 0, 0), (6, 2), 2, 1, (1, 3))
    hidden = pixel_mask(view.mask[None], 2)[0]
    for name, model in models.items():
        response = respond(model, view)
        assert np.array_equal(response.filled[~hidden], images[0][~hidden])
        error = (torch.from_numpy(response.filled)[hidden].float() - images[0][hidden].float()).square()
        assert response.psnr == pytest.approx(psnr(float(error.sum()), error.numel()), abs=0.01), name  # whole colours
        assert response.field.sum() == pytest.approx(1) and (response.field[hidden] == 0).all()
        assert response.shift_error > 0 and response.shift_map.shape == (8, 8)
    whole = Scene(images[0], torch.zeros(8, 8, dtype=torch.bool), (3, 3))
    assert respond(models["conv"], whole).psnr is None
    centre = Scene(images[0], torch.zeros(8, 8, dtype=torch.bool), (4, 4), shift=(1, 2))
    for model in models.values():
        assert respond(model, centre).shift_error == pytest.approx(measure.roll_error(model, images[:1])[-1], rel=1e-5)
        assert np.allclose(respond(model, centre).field, measure.receptive_field(model, images[:1])["map"], atol=1e-6)


def test_convolution_mixes_the_same_window_everywhere_and_attention_another_pattern(models, images):
    shown = torch.zeros(8, 8, dtype=torch.bool)
    responses = {
        name: [respond(model, Scene(images[0], shown, place)) for place in ((3, 3), (4, 5))] for name, model in models.items()
    }
    one, other = (response.mixing for response in responses["conv"])
    assert (one > 0).sum() == 25 and np.array_equal(one[1:6, 1:6], other[2:7, 3:8])
    one, other = (response.mixing for response in responses["attn"])
    assert (one > 0).all() and one.sum() == pytest.approx(1, rel=1e-5) and not np.allclose(one, other)


def test_the_pattern_of_an_operator_without_a_matrix_is_that_of_its_matrix_where_it_has_both(images):
    """The norm of the Jacobian block of a static operator with one head is |A_ij| times the norm of W_V W_O."""
    model = build(configure("quick", mixer="full", heads=1, width=32, depth=1), STATS)
    row = measure.mixing_row(model, images[:1], (2, 5), 1)
    mix = model.stack[0].mix
    _, calls = measure.observe(model, measure.encoded(model, images[:1]), [mix])
    norms = measure.block_norms(mix, calls[0][1], (2, 5)).float()
    scale = (mix.value.weight.T @ mix.out.weight.T).norm()
    assert torch.allclose(norms, row * scale, rtol=1e-4, atol=1e-7)


def test_a_repeated_block_and_a_layer_too_deep_are_shown_too(images):
    model = build(configure("quick", mixer="attn", blocks="repeated", depth=3, width=32, heads=2), STATS)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    rows = [respond(model, Scene(images[0], mask, (1, 1), layer)).mixing for layer in (1, 3, 9)]
    assert not np.allclose(rows[0], rows[1]) and np.array_equal(rows[1], rows[2])
    assert respond(model, Scene(images[0], mask, (1, 1), 1, head=7)).mixing.shape == (8, 8)


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"shift": (2, 2)}, ("filled", "mixing", "field")),
        ({"position": (0, 0)}, ("filled", "shift_map")),
        ({"layer": 2}, ("filled", "field", "shift_map")),
        ({"mask": MASKS["centre square"](8, 0, 0)}, ()),
        ({}, ("filled", "mixing", "field", "shift_map")),
    ],
)
def test_what_did_not_change_is_not_computed_again_and_the_result_is_that_of_a_fresh_respond(panel, fields, same):
    before = dict(panel.responses)
    panel.change(**fields)
    for name, model in panel.models.items():
        fresh = respond(model, panel.scene)
        for part in ("filled", "mixing", "field", "shift_map"):
            now = getattr(panel.responses[name], part)
            assert np.array_equal(now, getattr(fresh, part))
            assert (now is getattr(before[name], part)) == (part in same), part


def test_networks_are_found_by_name_by_key_and_by_folder_and_must_go_together(models, root, monkeypatch):
    from biasnb.records import store
    from biasnb.training import run

    cfg = configure("smoke", mixer="lc")
    own = run.run(cfg, store.Store("smoke"))
    assert list(networks([own["key"]], "smoke")) == [own["key"]]
    pretrained.folder("smoke").parent.mkdir(parents=True)
    monkeypatch.undo()
    folder = str(pretrained.folder("quick") / "conv")
    assert networks([folder])[folder].cfg == models["conv"].cfg
    with pytest.raises(BiasnbError, match=r"'cov' is neither published .* did you mean 'conv'\? There are attn, conv"):
        networks(["cov"])
    with pytest.raises(BiasnbError, match="none are named; published are attn"):
        networks([])


def test_networks_of_other_tasks_and_sizes_are_refused(root, models, tmp_path):
    from biasnb.records import store
    from biasnb.training import run

    keys = [
        run.run(configure("smoke", **fields), store.Store("smoke"))["key"] for fields in ({"pretext": "denoise"}, {"patch": 4})
    ]
    with pytest.raises(BiasnbError, match="pretext 'denoise' and fills no holes"):
        networks(keys[:1], "smoke")
    permuted = run.run(configure("smoke", permute="patches"), store.Store("smoke"))["key"]
    with pytest.raises(BiasnbError, match="sees its pixels permuted"):
        networks([permuted], "smoke")
    small = run.run(configure("smoke"), store.Store("smoke"))["key"]
    with pytest.raises(BiasnbError, match=r"other image_size or patch .* cannot stand side by side"):
        networks([keys[1], small], "smoke")


def test_the_sheet_shows_every_picture_where_it_belongs(panel, images):
    view = panel.scene
    hidden = pixel_mask(view.mask[None], 2)[0].numpy()
    assert np.array_equal(tile(panel, 0, 0), view.image)
    assert (tile(panel, 0, 1)[hidden] == scene.GREY).all() and np.array_equal(tile(panel, 0, 1)[~hidden], view.image[~hidden])
    assert np.array_equal(tile(panel, 3, 0), view.image.roll((2, 4), (0, 1)))
    for column, response in enumerate(panel.responses.values(), 2):
        assert np.array_equal(tile(panel, 0, column), response.filled)
        assert (tile(panel, 1, column)[::2, ::2].reshape(-1, 3) == 255).all(1).sum() == (response.mixing == 0).sum()
    words = [panel.sheet.words[0, column].get_text() for column in range(2, 5)]
    assert [word.split()[0] for word in words] == ["conv", "attn", "mixer"] and all(word.endswith("dB") for word in words)


def test_places_of_the_mouse_are_tokens_of_tiles_and_nothing_between(panel):
    sheet = panel.sheet
    for row, column, token in ((0, 0, (0, 0)), (0, 1, (7, 7)), (2, 4, (3, 5))):
        event = at(sheet, row, column, token)
        assert sheet.place(event.xdata, event.ydata) == (row, column, token)
    top, left = sheet.corner(1, 2)
    for x, y in ((left - 2, top + 1), (left + 1, top - 2), (-5, 5), (5, 1e6), (None, None)):
        assert sheet.place(x, y) is None


def test_in_jupyterlab_the_panel_is_a_widget_and_a_picture_and_elsewhere_a_picture(panel, monkeypatch):
    monkeypatch.setattr(playground, "in_jupyterlab", lambda: False)
    bundle, about = panel._repr_mimebundle_()
    assert about["image/png"]["alt"].startswith("playground: ")
    assert set(bundle) == {"image/png", "text/plain"}
    with Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))) as image:
        assert image.size[0] > 800
    monkeypatch.setattr(playground, "in_jupyterlab", lambda: True)
    assert set(panel._repr_mimebundle_()[0]) >= {"image/png", "application/vnd.jupyter.widget-view+json"}


def test_every_control_changes_the_view_and_the_picture(panel, controls, images):
    def moved(act):
        before, view = pixels(panel).copy(), panel.scene
        act()
        assert panel.scene is not view and not np.array_equal(before, pixels(panel))
        return panel.scene

    other = (panel.first + 1) % 3
    assert moved(lambda: setattr(controls.index, "value", other)).image.equal(images[other])
    for rule in ("centre square", "every second row", "lower half"):
        assert moved(lambda rule=rule: setattr(controls.rule, "value", rule)).mask.equal(MASKS[rule](8, 0, 0))
        assert controls.rate.disabled
    moved(lambda: setattr(controls.rule, "value", "random"))
    assert moved(lambda: setattr(controls.rate, "value", 0.9)).mask.float().mean() > 0.7
    mask = panel.scene.mask
    assert not moved(controls.again.click).mask.equal(mask)
    assert moved(lambda: setattr(controls.layer, "value", 2)).layer == 2
    assert moved(lambda: setattr(controls.head, "value", 1)).head == 1
    assert moved(lambda: setattr(controls.down, "value", 4)).shift == (4, 2)
    assert moved(lambda: setattr(controls.right, "value", 0)).shift == (4, 0)
    assert moved(lambda: controls.press(at(panel.sheet, 0, 3, (2, 6)))).position == (2, 6)


def test_a_change_from_code_redraws_and_moves_the_controls(panel, monkeypatch):
    monkeypatch.setattr(playground, "in_jupyterlab", lambda: True)
    panel._repr_mimebundle_()
    before = pixels(panel).copy()
    assert panel.change(shift=(3, 1), layer=2, head=0) is panel
    controls = panel.controls
    assert (controls.down.value, controls.right.value, controls.layer.value, controls.head.value) == (3, 1, 2, 0)
    assert not np.array_equal(before, pixels(panel))
    assert panel.change(head=None).controls.head.value == "mean of heads"
    controls.down.value = 5
    assert panel.scene.shift == (5, 1)
    for row, column in ((3, 2), (1, 0), (2, 1)):  # a shifted picture, and places without one
        controls.press(at(panel.sheet, row, column, (1, 1)))
    assert panel.scene.position == (4, 4)


def test_a_mask_is_painted_by_dragging_and_what_networks_make_of_it_is_drawn_at_the_end(panel, controls):
    panel.change(mask=torch.zeros(8, 8, dtype=torch.bool))
    before = panel.responses
    controls.press(at(panel.sheet, 0, 1, (2, 2)))
    for token in ((2, 3), (2, 3), (2, 4)):
        controls.drag(at(panel.sheet, 0, 1, token))
    controls.drag(at(panel.sheet, 0, 2, (5, 5)))  # outside the masked image
    assert panel.responses is before and panel.scene.mask.nonzero().tolist() == [[2, 2], [2, 3], [2, 4]]
    assert (tile(panel, 0, 1)[4:6, 4:10] == scene.GREY).all()
    controls.release(None)
    assert panel.responses["conv"].psnr is not None and controls.rule.value == "painted"
    controls.press(at(panel.sheet, 0, 1, (2, 3)))  # a hidden one is shown again
    controls.release(None)
    assert panel.scene.mask.nonzero().tolist() == [[2, 2], [2, 4]]


def test_other_networks_are_chosen_and_too_many_or_none_refused(panel, controls, monkeypatch):
    controls.chosen.value = ("mixer",)
    assert list(panel.responses) == ["mixer"] and panel.sheet.columns == 3
    controls.chosen.value = ()
    assert "choose 1 to" in controls.trouble.value and list(panel.responses) == ["mixer"]
    controls.chosen.value = ("conv", "attn")
    assert controls.trouble.value == "" and list(panel.responses) == ["conv", "attn"]


def test_images_come_from_a_folder_or_an_upload_and_trouble_is_said_in_a_line(panel, controls, tmp_path):
    picture = np.full((20, 30, 3), 200, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.png").write_bytes(buffer.getvalue())
    (tmp_path / "b.JPG").write_bytes(b"none")
    shown = panel.scene
    controls.source.value = "folder"
    assert panel.scene is shown and controls.upload.layout.display == "none"
    controls.folder.value = str(tmp_path / "nowhere")
    assert "is not a folder" in controls.trouble.value and panel.scene is shown
    (tmp_path / "empty").mkdir()
    controls.folder.value = str(tmp_path / "empty")
    assert "holds no image" in controls.trouble.value and panel.scene is shown
    controls.index.value = 0
    controls.folder.value = str(tmp_path)
    assert "b.JPG: not readable" in controls.trouble.value and panel.scene is shown
    controls.index.value = 1
    assert (panel.scene.image == 200).all() and controls.trouble.value == "" and controls.index.max == 1
    controls.source.value = "upload"
    controls.upload.value = ({**FILE, "content": memoryview(b"<script>")},)
    assert "not readable as an image" in controls.trouble.value and "<script>" not in controls.trouble.value
    controls.upload.value = ({**FILE, "content": memoryview(buffer.getvalue())},)
    assert (panel.scene.image == 200).all() and controls.trouble.value == ""
    controls.source.value = "test set"
    assert not (panel.scene.image == 200).all()


def test_a_sheet_takes_images_of_other_sizes_and_one_network():
    model = build(configure("quick", mixer="conv", image_size=32, patch=4, width=32, heads=2, depth=1), STATS)
    from biasnb.figures.style import Picture

    sheet = Sheet({"x": model}, Picture())
    image = torch.zeros(32, 32, 3, dtype=torch.uint8)
    view = Scene(image, MASKS["random"](8, 0.5, 0), (7, 7))
    sheet.show(view, {"x": respond(model, view)})
    assert sheet.image.get_array().shape[0] == 4 * (32 + 8)
