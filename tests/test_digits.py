import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from biasnb.config import CODED, DATASETS, Config
from biasnb.data import datasets, embedded

FORM = list(range(10)) * 2  # the text of every writer's form begins so


@pytest.fixture(scope="module")
def file():
    return load_digits()


@pytest.fixture(scope="module")
def plain():
    return embedded.handwritten_digits(16, coded=False)


def test_the_same_digits_lie_at_the_same_places_every_time(plain):
    classes, arrays = embedded.handwritten_digits(16, coded=False)
    assert classes == plain[0] == tuple("0123456789")
    assert list(arrays) == list(plain[1]) and all((arrays[name] == plain[1][name]).all() for name in arrays)


def test_splits_are_grey_uint8_images_sorted_by_class_with_int64_labels(plain):
    for part, count in (("train", 3087), ("val", 1032), ("test", 2040)):
        images, labels = plain[1][part], plain[1][f"{part}_labels"]
        assert (images.shape, images.dtype) == ((count, 16, 16, 3), np.uint8)
        assert (images == images[..., :1]).all() and images.min() == 0 and images.max() == 255
        assert (labels.shape, labels.dtype) == ((count,), np.int64) and (np.diff(labels) >= 0).all()


def test_classes_are_balanced(plain):
    for part in embedded.DIGITS:
        counts = np.bincount(plain[1][f"{part}_labels"])
        assert len(counts) == 10 and counts.min() > 0.9 * counts.mean() and counts.max() < 1.1 * counts.mean()


def test_splits_are_the_file_cut_where_a_writer_begins(file):
    ends = [(first, last) for first, last, _ in embedded.DIGITS.values()]
    assert ends[0][0] == 0 and ends[-1][1] == len(file.target)
    for (_, last), (first, _) in itertools.pairwise(ends):
        assert last == first and file.target[first : first + len(FORM)].tolist() == FORM


@pytest.mark.parametrize("size", [4, 7, 8, 16, 33])
def test_every_image_is_its_digit_at_a_place_and_black_around_it(file, size):
    _, arrays = embedded.handwritten_digits(size, coded=False)
    side = 3 * size // 4
    known = embedded.enlarge(file.images.astype(np.int64), side)
    index = np.arange(len(arrays["test"]))[:: max(1, size // 4)]
    for image, digit in zip(arrays["test"][index, ..., 0], arrays["test_groups"][index], strict=True):
        places = np.lib.stride_tricks.sliding_window_view(image, (side, side))
        fits = (places == known[digit]).all((2, 3))
        assert fits.any() and image.sum() == known[digit].sum()


def test_a_group_is_a_digit_of_the_test_part_placed_four_times(file, plain):
    groups, labels = plain[1]["test_groups"], plain[1]["test_labels"]
    first, last, copies = embedded.DIGITS["test"]
    found, counts = np.unique(groups, return_counts=True)
    assert found.tolist() == list(range(first, last)) and (counts == copies).all()
    assert (labels == file.target[groups]).all()


@pytest.mark.parametrize("size", [8, 16])
def test_no_image_occurs_twice(size):
    _, arrays = embedded.handwritten_digits(size, coded=False)
    images = [image.tobytes() for part in embedded.DIGITS for image in arrays[part]]
    same = len(images) - len(set(images))
    assert same == 0 if size == 16 else same < 10  # at 6 pixels two digits may be alike


def test_digits_lie_everywhere_about_as_often(file, plain):
    """A digit of 12 pixels has 25 places in 16: each is taken as often as the others, up to four standard deviations."""
    known, counts = embedded.enlarge(file.images.astype(np.int64), 12), np.zeros((5, 5))
    for image, digit in zip(plain[1]["test"][..., 0], plain[1]["test_groups"], strict=True):
        counts += (np.lib.stride_tricks.sliding_window_view(image, (12, 12)) == known[digit]).all((2, 3))
    assert counts.sum() == len(plain[1]["test"])
    assert abs(counts - counts.mean()).max() < 4 * counts.mean() ** 0.5


@pytest.mark.parametrize("side", [1, 3, 6, 8, 12, 24, 192])
def test_enlarging_agrees_with_torchs_antialiased_bilinear_to_half_a_level(file, side):
    found = embedded.enlarge(file.images[:200].astype(np.int64), side)
    images = torch.from_numpy(file.images[:200] * (255 / 16))[:, None]
    known = F.interpolate(images, (side, side), mode="bilinear", antialias=True)[:, 0].numpy()
    assert found.dtype == np.uint8 and abs(found - known).max() <= 0.5 + 1e-9


def test_enlarging_matches_the_slow_loop_of_fractions(file):
    bitmap = file.images[:1].astype(np.int64)
    found = embedded.enlarge(bitmap, 5)[0]
    for y, x in np.ndindex(5, 5):
        total = weight = Fraction(0)
        for v, u in np.ndindex(8, 8):
            w = Fraction(1)
            for target, source in ((y, v), (x, u)):
                distance = abs(Fraction(2 * target + 1, 2) * Fraction(8, 5) - Fraction(2 * source + 1, 2))
                w *= max(Fraction(0), 1 - distance / Fraction(8, 5))
            total, weight = total + w * int(bitmap[0, v, u]), weight + w
        assert found[y, x] == math.floor(255 * total / weight / 16 + Fraction(1, 2))


def test_the_twin_has_the_same_images_with_a_code_by_place(plain):
    _, twin = embedded.handwritten_digits(16, coded=True)
    assert list(twin) == list(plain[1])
    for name, array in plain[1].items():
        if name not in embedded.DIGITS:
            assert (twin[name] == array).all()
            continue
        assert (twin[name] == embedded.recolour(array)).all() and (twin[name] != array).any()
        assert (embedded.recolour(twin[name], inverse=True) == array).all()


def test_digits_are_loaded_with_their_own_validation_split(root):
    found = datasets.load(Config(dataset="digits", labelled=500))
    assert [len(getattr(found, part).labels) for part in ("pool", "train", "val", "test")] == [3087, 500, 1032, 2040]
    twin = datasets.load(Config(dataset="digits_coded", labelled=500))
    assert (found.name, twin.name) == ("digits", "digits_coded") and found.fingerprint != twin.fingerprint
    assert (embedded.recolour(found.test.images.numpy()) == twin.test.images.numpy()).all()


def test_every_twin_is_a_data_set_beside_its_plain_one():
    assert {*CODED, *CODED.values()} <= set(DATASETS) and all(name == f"{plain}_coded" for name, plain in CODED.items())
