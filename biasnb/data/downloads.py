"""torchvision's data sets: read if they are whole, else downloaded by one process and checked."""

import socket
import tarfile

import numpy as np

from ..records.files import StoreError, locked
from .images import DataError, reason, resize

STALL = 60  # seconds without a byte after which a download has failed
DOWNLOADS = {
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "svhn": "train_32x32.mat and test_32x32.mat",
    "stl10": "stl10_binary.tar.gz",
    "fashionmnist": "FashionMNIST/raw/*-ubyte.gz",
}


def download(dataset, root, size):
    """(classes, arrays) of a torchvision data set, downloaded to `root` on first use. STL-10 trains on its unlabelled
    images too (label -1). Raises DataError saying what to put where."""
    from torchvision import datasets

    make, *choices = {
        "cifar10": (datasets.CIFAR10, {"train": True}, {"train": False}),
        "cifar100": (datasets.CIFAR100, {"train": True}, {"train": False}),
        "svhn": (datasets.SVHN, {"split": "train"}, {"split": "test"}),
        "stl10": (datasets.STL10, {"split": "train+unlabeled"}, {"split": "test"}),
        "fashionmnist": (datasets.FashionMNIST, {"train": True}, {"train": False}),
    }[dataset]

    def read():
        return [make(str(root), download=False, **choice) for choice in choices]

    try:
        found = read()
    except Exception:  # missing, torn or tampered with; torchvision raises many kinds
        found = _fetched(dataset, make, root, read)
    arrays = {}
    for part, split in zip(("train", "test"), found, strict=True):
        images = np.asarray(split.data)
        if dataset in ("svhn", "stl10"):  # (n, 3, h, w)
            images = images.transpose(0, 2, 3, 1)
        if images.ndim == 3:  # Fashion-MNIST is grey
            images = np.repeat(images[..., None], 3, axis=3)
        labels = split.targets if hasattr(split, "targets") else split.labels
        arrays[part], arrays[f"{part}_labels"] = resize(images, size), np.asarray(labels, np.int64)
    classes = getattr(found[1], "classes", None) or range(int(arrays["test_labels"].max()) + 1)
    return tuple(str(c) for c in classes), arrays


def _fetched(dataset, make, root, read):
    """What `read` gives once the data are whole: fetched by one process, for which others wait, and once again if they
    fail their check. Raises DataError."""
    try:
        with locked(root / ".locks" / f"{dataset}.lock", f"{dataset}: another process downloads it; waiting for that"):
            for fetch in (False, True, True):  # another process may just have done it
                try:
                    if fetch:
                        _fetch(make, root)
                    return read()
                except Exception as error:
                    why = reason(error)
    except StoreError as error:  # no lock can be made in a folder that is read-only
        why = reason(error)
    raise DataError(
        f"{dataset}: not whole in {root} and cannot be downloaded ({why}); put {DOWNLOADS[dataset]} there, "
        "set data_dir to where it is, or use dataset='folder' or 'photographs'"
    )


def _fetch(make, root):
    """Download the files of a torchvision data set that are missing or fail their md5, and extract them, even over what
    is there: torchvision itself takes a torn file of Fashion-MNIST for whole. Nothing is written outside the folder."""
    from torchvision.datasets.utils import download_url, extract_archive

    if hasattr(make, "split_list"):  # SVHN
        files = [(root, *make.split_list[part]) for part in ("train", "test")]
    elif hasattr(make, "resources"):  # Fashion-MNIST
        files = [(root / make.__name__ / "raw", make.mirrors[0] + name, name, md5) for name, md5 in make.resources]
    else:
        files = [(root, make.url, make.filename, make.tgz_md5)]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL)
    try:
        for folder, url, name, md5 in files:
            download_url(url, folder, name, md5)
            if name.endswith(".tar.gz"):
                with tarfile.open(folder / name) as archive:
                    archive.extractall(folder, filter="data")
            elif name.endswith(".gz"):
                extract_archive(str(folder / name))
    finally:
        socket.setdefaulttimeout(before)
