import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from biasnb.config import MAX_SIZE
from biasnb.data import embedded as leaves


@pytest.fixture(scope="module")
def plain():
    return leaves.dead_leaves(16, coded=False)


@pytest.fixture(scope="module")
def twin():
    return leaves.dead_leaves(16, coded=True)


def test_the_same_leaves_fall_every_time(plain):
    classes, arrays = leaves.dead_leaves(16, coded=False)
    assert classes == plain[0]
    assert all((arrays[name] == plain[1][name]).all() for name in plain[1])


def test_splits_are_balanced_uint8_images_with_int64_labels(plain):
    classes, arrays = plain
    assert list(arrays) == ["train", "train_labels", "val", "val_labels", "test", "test_labels"]
    for part, count in leaves.COUNTS.items():
        images, labels = arrays[part], arrays[f"{part}_labels"]
        assert (images.shape, images.dtype) == ((count, 16, 16, 3), np.uint8)
        assert (labels.shape, labels.dtype) == ((count,), np.int64)
        assert np.ptp(np.bincount(labels, minlength=len(classes))) <= 1


def test_no_image_occurs_twice(plain):
    images = [image.tobytes() for part in leaves.COUNTS for image in plain[1][part]]
    assert len(set(images)) == len(images) == sum(leaves.COUNTS.values())


def test_cover_matches_a_painter_who_lets_the_leaves_fall():
    n, size, inside = 3, 8, leaves.SHAPES["triangle"]
    fast = leaves.cover(inside, n, size, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    slow = np.zeros_like(fast)
    for cx, cy, radius, colour in reversed([leaves.draw(n, size, rng) for _ in range(500)]):
        for i, y, x in np.ndindex(n, size, size):
            if inside((x + 0.5 - cx[i]) / radius[i], (y + 0.5 - cy[i]) / radius[i]):
                slow[i, y, x] = colour[i]
    assert (fast == slow).all()


@pytest.mark.parametrize("shape", leaves.SHAPES)
def test_shapes_have_the_area_of_the_disc_a_mirror_image_and_a_bounded_reach(shape):
    grid = np.linspace(-2, 2, 2001)
    inside = leaves.SHAPES[shape](grid, grid[:, None])
    assert inside.mean() * 16 == pytest.approx(np.pi, rel=0.005)
    assert (inside == inside[:, ::-1]).all()
    beyond = abs(grid) > leaves.REACH
    assert not inside[beyond].any() and not inside[:, beyond].any()


def test_radii_have_density_one_over_r_cubed():
    _, _, radius, _ = leaves.draw(100_000, 24, np.random.default_rng(0))
    assert (radius >= 3).all() and (radius <= 8).all()
    expected = (3**-2 - 5**-2) / (3**-2 - 8**-2)  # integral of r^-3 over 3 to 5, of that over 3 to 8
    assert (radius < 5).mean() == pytest.approx(expected, abs=0.005)


def spread(statistic):
    """Largest deviation of a column (or row) mean from the mean over columns, standard errors. (n, W) -> float."""
    deviation = statistic - statistic.mean(1, keepdims=True)
    return float(abs(deviation.mean(0) / deviation.std(0) * len(deviation) ** 0.5).max())


def statistics(images):
    """Mean, variance and step to the right neighbour of every column in the three channels: name -> (n, W)."""
    x = images / 255 - 0.5
    step = abs(x[:, :, 1:] - x[:, :, :-1]).mean(1)
    found = {"mean": x.mean(1), "variance": (x**2).mean(1), "step": step}
    return {f"{name} {c}": values[..., c] for name, values in found.items() for c in range(3)}


def test_the_field_is_stationary(plain):
    images = plain[1]["train"]
    for view in (images, images.swapaxes(1, 2)):
        assert max(spread(values) for values in statistics(view).values()) < 4


def test_the_twin_keeps_every_places_law_but_not_its_relation_to_its_neighbours(plain, twin):
    for images, varies in ((plain[1]["train"], False), (twin[1]["train"], True)):
        x = images / 255 - 0.5
        laws = {"mean": x, "variance": x**2}
        steps = {"right": abs(x[:, :, 1:] - x[:, :, :-1]), "down": abs(x[:, 1:] - x[:, :-1])}
        for name, values in (laws | steps).items():
            widest = max(spread(values[..., c].reshape(len(x), -1)) for c in range(3))
            assert widest > 20 if varies and name in steps else widest < 5, name


def test_recolour_inverts_exactly(plain, twin):
    assert list(twin[1]) == list(plain[1])
    for part in leaves.COUNTS:
        assert (twin[1][f"{part}_labels"] == plain[1][f"{part}_labels"]).all()
        assert (twin[1][part] == leaves.recolour(plain[1][part])).all()
        assert (leaves.recolour(twin[1][part], inverse=True) == plain[1][part]).all()


def test_the_code_of_a_place_depends_on_nothing_else_and_all_48_occur():
    probe = np.array([0, 40, 80], np.uint8)  # tells all codes apart
    coded = leaves.recolour(np.tile(probe, (256, 256, 1)))
    for height, width in ((8, 8), (16, 16), (33, 5)):
        assert (leaves.recolour(np.tile(probe, (height, width, 1))) == coded[:height, :width]).all()
    assert len(np.unique(coded[:16, :16].reshape(-1, 3), axis=0)) == 48
    assert MAX_SIZE == 256, "the largest image has a code"


@pytest.mark.parametrize("grey", [0, 100, 255])
def test_neighbours_have_different_codes_of_grey_too(grey):
    coded = leaves.recolour(np.full((256, 256, 3), grey, np.uint8))
    assert (coded[1:] != coded[:-1]).any(-1).all() and (coded[:, 1:] != coded[:, :-1]).any(-1).all()


def test_no_shift_of_the_code_is_valid():
    """Shifted by any number of rows and columns within an image, about one place in eight has the same inversions: as by
    chance."""
    inverted = leaves.codes()[:32, :32] % 8
    for dy in range(16):
        for dx in range(-15, 16):
            if (dy, dx) != (0, 0):
                here, there = inverted[: 32 - dy, max(0, -dx) : 32 - max(0, dx)], inverted[dy:, max(0, dx) : 32 + min(0, dx)]
                assert (here == there).mean() < 0.25, (dy, dx)


def accuracy(features, arrays):
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    model.fit(features(arrays["train"]), arrays["train_labels"])
    return model.score(features(arrays["test"]), arrays["test_labels"])


def colour(images):
    """Mean and standard deviation of an image's channels. (n, H, W, 3) -> (n, 6)."""
    return np.concatenate([images.mean((1, 2)), images.std((1, 2))], 1)


def edges(images, reach=3):
    """How often pixels at a distance of up to `reach` along x and y differ: the shape of the autocorrelation."""
    side = images.shape[1] - 2 * reach
    centre = images[:, reach : reach + side, reach : reach + side]
    shifts = [(y, x) for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
    return np.stack([(centre != images[:, y : y + side, x : x + side]).any(-1).mean((1, 2)) for y, x in shifts], 1)


def test_colour_does_not_tell_the_class(plain):
    assert accuracy(colour, plain[1]) < 0.22
    images, labels = plain[1]["train"].mean((1, 2)), plain[1]["train_labels"]
    for c in range(len(plain[0])):
        inside, outside = images[labels == c], images[labels != c]
        error = np.sqrt(inside.var(0) / len(inside) + outside.var(0) / len(outside))
        assert (abs(inside.mean(0) - outside.mean(0)) < 4 * error).all()


def test_shape_tells_the_class_less_so_in_the_twin(plain, twin):
    assert accuracy(edges, plain[1]) > 0.95
    assert accuracy(edges, twin[1]) < 0.7
