"""Data sets of torchvision, downloaded by one process if they are missing or damaged, and checked by their MD5 sums."""

import contextlib
import socket
import tarfile
from typing import NamedTuple

import numpy as np

from ..records.files import StoreError, locked
from ..records.keys import digest
from .images import DataError, reason, resize

STALL = 60  # seconds without data after which a download is aborted


class Source(NamedTuple):
    kind: str  # class in torchvision.datasets
    train: dict  # arguments that select the training images
    test: dict
    files: tuple  # files, or folders of files, that are read
    archives: str  # files that a user without network access puts into the data folder


SOURCES = {
    "cifar10": Source("CIFAR10", {"train": True}, {"train": False}, ("cifar-10-batches-py",), "cifar-10-python.tar.gz"),
    "cifar100": Source("CIFAR100", {"train": True}, {"train": False}, ("cifar-100-python",), "cifar-100-python.tar.gz"),
    "svhn": Source("SVHN", {"split": "train"}, {"split": "test"}, ("train_32x32.mat", "test_32x32.mat"),
                   "train_32x32.mat and test_32x32.mat"),
    "stl10": Source("STL10", {"split": "train+unlabeled"}, {"split": "test"}, ("stl10_binary",), "stl10_binary.tar.gz"),
    "fashionmnist": Source("FashionMNIST", {"train": True}, {"train": False}, ("FashionMNIST/raw",),
                           "FashionMNIST/raw/*-ubyte.gz"),
}  # fmt: skip


def stamp(dataset, root):
    """Return a digest of the names, sizes and time stamps of the files of a data set."""
    files = []
    for path in (root / name for name in SOURCES[dataset].files):
        files += sorted(path.iterdir()) if path.is_dir() else [path]
    return digest([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()])


def download(dataset, root, size):
    """Return (classes, arrays) of a torchvision data set, downloaded to `root` on first use. The training split of STL-10
    includes its unlabelled images (label -1). Raises DataError naming the files that are needed."""
    arrays, found = {}, _whole(dataset, root)
    for part, split in zip(("train", "test"), found, strict=True):
        images = np.asarray(split.data)
        if dataset in ("svhn", "stl10"):  # (n, 3, h, w)
            images = images.transpose(0, 2, 3, 1)
        if images.ndim == 3:  # greyscale (Fashion-MNIST)
            images = np.repeat(images[..., None], 3, axis=3)
        labels = split.targets if hasattr(split, "targets") else split.labels
        arrays[part], arrays[f"{part}_labels"] = resize(images, size), np.asarray(labels, np.int64)
    classes = getattr(found[1], "classes", None) or range(int(arrays["test_labels"].max()) + 1)
    return tuple(str(c) for c in classes), arrays


def _whole(dataset, root):
    """Return the training and test sets of torchvision, which checks their files. Missing or damaged files are downloaded by
    one process while others wait, and once more if the check fails. Raises DataError if that fails too."""
    from torchvision import datasets

    if root.exists() and not root.is_dir():
        raise DataError(f"data_dir: {root} is not a folder; set it to the folder where {dataset} is, or where it is to go")
    source = SOURCES[dataset]
    kind = getattr(datasets, source.kind)

    def read():
        return [kind(str(root), download=False, **choice) for choice in (source.train, source.test)]

    with contextlib.suppress(Exception):  # torchvision raises exceptions of many types
        return read()
    try:
        with locked(root / f".{dataset}.lock", f"waiting for another process that downloads {dataset}"):
            for fetch in (False, True, True):  # another process may have downloaded the files meanwhile
                try:
                    if fetch:
                        _fetch(kind, root)
                    return read()
                except Exception as error:
                    why = reason(error)
    except StoreError as error:  # the folder is read-only
        why = reason(error)
    what = f"put {source.archives} there, set data_dir to where it is, or use dataset='folder' or 'photographs'"
    raise DataError(f"{dataset}: not whole in {root} and cannot be downloaded ({why}); {what}")


def _fetch(kind, root):
    """Download the files of a torchvision data set that are missing or fail their MD5 check, and extract them over existing
    files, because torchvision does not notice truncated files of Fashion-MNIST and truncated class names of CIFAR."""
    from torchvision.datasets.utils import download_and_extract_archive, download_url

    with _guarded():
        if hasattr(kind, "split_list"):  # SVHN
            for part in ("train", "test"):
                url, name, md5 = kind.split_list[part]
                download_url(url, root, name, md5)
        elif hasattr(kind, "resources"):  # Fashion-MNIST
            for name, md5 in kind.resources:
                folder = root / kind.__name__ / "raw"
                download_and_extract_archive(kind.mirrors[0] + name, folder, filename=name, md5=md5)
        else:
            download_and_extract_archive(kind.url, root, filename=kind.filename, md5=kind.tgz_md5)


@contextlib.contextmanager
def _guarded():
    """Within the block, abort downloads from a stalled server, and refuse archives with paths outside the target folder, which
    is the default of Python since version 3.14."""
    timeout, extraction = socket.getdefaulttimeout(), tarfile.TarFile.extraction_filter
    socket.setdefaulttimeout(STALL)
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
        tarfile.TarFile.extraction_filter = extraction and staticmethod(extraction)
