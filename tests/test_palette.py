import pytest
import torch

from biasnb.data import palette
from biasnb.data.palette import PaletteError


def test_quantise_matches_the_slow_loop(images, monkeypatch):
    monkeypatch.setitem(palette.AT_ONCE, "cpu", 70)
    x = images(3, 6)
    p = palette.fit(x, 7)
    ids = palette.quantise(x, p)
    for pixel, found in zip(x.reshape(-1, 3).tolist(), ids.flatten().tolist(), strict=True):
        distances = [sum((a - b) ** 2 for a, b in zip(pixel, colour, strict=True)) for colour in p.colours.tolist()]
        assert distances[found] == pytest.approx(min(distances), rel=1e-5)


def test_a_palette_of_all_colours_loses_nothing():
    x = torch.tensor([[0, 0, 0], [255, 0, 0], [0, 255, 0], [9, 9, 255]], dtype=torch.uint8).repeat(8, 1).view(2, 4, 4, 3)
    p = palette.fit(x, 4)
    assert torch.equal(palette.dequantise(palette.quantise(x, p), p).round().byte(), x)


def test_more_colours_than_there_are_is_refused():
    x = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    x[0] = 7
    with pytest.raises(PaletteError, match=r"colours: 3.*2 distinct"):
        palette.fit(x, 3)


def test_equal_images_give_an_equal_palette_and_hash(images):
    a, b = palette.fit(images(4, 8), 8), palette.fit(images(4, 8), 8)
    assert torch.equal(a.colours, b.colours)
    assert a.hash == b.hash
    assert a.hash != palette.fit(images(4, 8, seed=1), 8).hash


def test_quantise_is_exact_under_autocast(images):
    x = images(8, 16)
    p = palette.fit(x, 64)
    with torch.autocast("cpu", torch.bfloat16):
        ids = palette.quantise(x, p)
    assert torch.equal(ids, palette.quantise(x, p))
