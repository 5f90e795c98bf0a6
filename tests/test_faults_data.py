"""Data that are torn, tampered with or hostile, and downloads that are cut, corrupt or made twice at once."""

import codecs
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torchvision.datasets
from forked import until
from PIL import Image

from biasnb.config import BiasnbError, Config, ConfigError
from biasnb.data import datasets as data
from biasnb.data import downloads, images
from biasnb.data.datasets import DataError
from biasnb.records import keys
from biasnb.records.keys import key

BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
TOP = "cifar-10-batches-py"
TIMES = 30  # seconds a process may take


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# ---- a server with a small CIFAR-10 -------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        content = server.files[self.path]
        probe = self.headers.get("Method") == "HEAD"  # torchvision looks for a redirect before it downloads
        if not probe:
            server.asked += 1
            content = server.serve(server.asked, content)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if probe:
            return
        with contextlib.suppress(OSError):  # the other end was killed
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            server.go.wait(TIMES)
            self.wfile.write(content[len(content) // 2 :])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server of `files` that counts what it was asked for; it stops half-way in each of them until `go` is set."""
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.files, found.asked, found.go, found.serve = {}, 0, threading.Event(), lambda n, content: content
    found.go.set()
    found.url = f"http://127.0.0.1:{found.server_address[1]}"
    threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
    yield found
    found.go.set()
    found.shutdown()
    found.server_close()


def corrupt(content):
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


def batch(seed, n=10):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)
    return pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(n)]}, protocol=2)


def archive(*members):
    """A .tar.gz of a small CIFAR-10 and of further members, (TarInfo, content), and what torchvision must know of it."""
    files = {name: batch(i) for i, name in enumerate([*BATCHES, "test_batch"])}
    files["batches.meta"] = pickle.dumps({"label_names": [f"kind {i}" for i in range(10)]}, protocol=2)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
        for name, content in files.items():
            info = tarfile.TarInfo(f"{TOP}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    sums = {name: md5(content) for name, content in files.items()}
    known = {"tgz_md5": md5(packed.getvalue()), "train_list": [[name, sums[name]] for name in BATCHES],
             "test_list": [["test_batch", sums["test_batch"]]],
             "meta": {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}}  # fmt: skip
    return packed.getvalue(), known


@pytest.fixture
def cifar(root, server, monkeypatch):
    """(serve an archive, the Config): torchvision's CIFAR-10 is what the server has."""

    def serve(*members):
        content, known = archive(*members)
        server.files["/cifar-10-python.tar.gz"] = content
        server.known = {"url": f"{server.url}/cifar-10-python.tar.gz", **known}
        for name, value in server.known.items():
            monkeypatch.setattr(f"torchvision.datasets.CIFAR10.{name}", value)
        return content

    serve()
    data._arrays.cache_clear()
    yield serve, Config(dataset="cifar10", image_size=32, batch=8, data_dir=str(root / "data"))
    data._arrays.cache_clear()


def loads(cfg):
    data._arrays.cache_clear()
    d = data.load(cfg)
    assert [len(getattr(d, part).labels) for part in ("train", "val", "test")] == [45, 5, 10]
    assert d.classes == tuple(f"kind {i}" for i in range(10))
    expected = pickle.loads(batch(5))["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert (d.test.images.numpy() == expected).all()
    return d


def refused(cfg, *words, kind=DataError):
    data._arrays.cache_clear()
    with pytest.raises(kind) as caught:
        data.load(cfg)
    text = str(caught.value)
    assert "\n" not in text and text.encode() and all(word in text for word in words), text
    return text


# ---- processes ----------------------------------------------------------------------------------------------------


def child(fields, known, lower):
    """In a process: load the data of a Config, as a user without rights where `lower`."""
    for name, value in known.items():
        setattr(torchvision.datasets.CIFAR10, name, value)
    if lower and os.geteuid() == 0:
        codecs.lookup("latin1")  # what is imported late: the interpreter's own folder may be root's
        Image.init()
        os.setuid(65534)
    try:
        print(data.load(Config(**fields)).fingerprint)
    except BiasnbError as error:
        print(f"error: {error}")
        sys.exit(1)


@pytest.fixture
def start(zygote, root):
    """start(a Config, what torchvision must know) -> a process that loads its data."""

    def start(cfg, known, lower=False):
        return zygote.start(root, then=f"import test_faults_data as t\nt.child({vars(cfg)!r}, {known!r}, {lower})")

    return start


# ---- F22: downloads -----------------------------------------------------------------------------------------------


@pytest.mark.fault("F22")
@pytest.mark.parametrize("spoil", [corrupt, lambda c: c[: len(c) // 3], lambda c: b"<html>not here</html>"])
def test_a_download_that_fails_its_check_is_fetched_once_again(cifar, server, spoil):
    server.serve = lambda n, content: spoil(content) if n == 1 else content
    loads(cifar[1])
    assert server.asked == 2
    loads(cifar[1])
    assert server.asked == 2


@pytest.mark.fault("F22")
def test_a_download_that_always_fails_its_check_ends_in_one_line(cifar, server, root, start):
    server.serve = lambda n, content: corrupt(content)
    process = start(cifar[1], server.known)
    assert process.wait() == 1
    assert server.asked == 2
    lines = [line for line in process.output().replace("\r", "\n").splitlines() if line.startswith("error")]
    assert lines == process.output().splitlines()[-1:] and "Traceback" not in process.output()
    assert "cifar10: not whole in" in lines[0] and "put cifar-10-python.tar.gz there" in lines[0]


@pytest.mark.fault("F22")
def test_of_two_processes_at_once_one_downloads_and_the_other_waits(cifar, server, root, start):
    server.go.clear()
    both = [start(cifar[1], server.known) for _ in range(2)]
    until(lambda: any("waiting for another process that prepares cifar10" in process.output() for process in both))
    server.go.set()
    assert [process.wait() for process in both] == [0, 0]
    assert server.asked == 1
    assert {process.output().split()[-1] for process in both} == {loads(cifar[1]).fingerprint}
    assert sorted(path.name for path in (root / "data").iterdir()) == [".cifar10.lock", TOP, "cifar-10-python.tar.gz"]


@pytest.mark.fault("F22")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_stopped_in_mid_download_leaves_nothing_that_is_taken_for_whole(cifar, server, root, start, number):
    server.go.clear()
    process = start(cifar[1], server.known)
    partial = root / "data/cifar-10-python.tar.gz"
    until(lambda: server.asked == 1 and partial.exists())
    time.sleep(0.1)
    process.kill(number)
    assert process.wait() == -number
    assert not (root / "data" / TOP).exists()
    server.go.set()
    loads(cifar[1])
    assert server.asked == 2


@pytest.mark.fault("F22")
@pytest.mark.parametrize("share", [0, 0.5, 0.999])
@pytest.mark.parametrize("name", ["cifar-10-python.tar.gz", f"{TOP}/data_batch_3", f"{TOP}/test_batch", f"{TOP}/batches.meta"])
def test_a_torn_file_is_not_taken_for_whole(cifar, server, root, name, share):
    whole = cifar[0]()
    (root / "data" / TOP).mkdir(parents=True)
    (root / "data/cifar-10-python.tar.gz").write_bytes(whole)
    loads(cifar[1])
    path = root / "data" / name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    if path.suffix == ".gz":  # the batches are whole: it is not even looked at
        loads(cifar[1])
        (root / "data" / TOP / "data_batch_1").unlink()
    loads(cifar[1])
    assert server.asked == (path.suffix == ".gz")


@pytest.mark.fault("F22")
def test_a_torn_file_without_its_archive_is_downloaded(cifar, server, root):
    loads(cifar[1])
    (root / "data/cifar-10-python.tar.gz").unlink()
    os.truncate(root / "data" / TOP / "batches.meta", 20)
    loads(cifar[1])
    assert server.asked == 2


@pytest.mark.fault("F22")
def test_a_server_that_stalls_is_given_up(cifar, server, monkeypatch):
    monkeypatch.setattr(downloads, "STALL", 0.2)
    server.go.clear()
    refused(cifar[1], "cifar10", "timed out", "set data_dir")
    assert server.asked == 2


@pytest.mark.fault("F22")
def test_a_torn_fashion_mnist_is_extracted_again(root, server, monkeypatch):
    def packed(*shape):
        values = np.random.default_rng(0).integers(0, 10, shape, dtype=np.uint8)
        return gzip.compress(struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + values.tobytes())

    names = [f"{part}-{kind}.gz" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    contents = [packed(40, 28, 28), packed(40), packed(40, 28, 28), packed(40)]
    server.files = {f"/{name}": content for name, content in zip(names, contents, strict=True)}
    made = [(name, md5(content)) for name, content in zip(names, contents, strict=True)]
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.resources", made)
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", [f"{server.url}/"])
    cfg = Config(dataset="fashionmnist", image_size=28, batch=8, data_dir=str(root / "data"))
    data._arrays.cache_clear()
    before = data.load(cfg).fingerprint
    for name in names:
        for size in (0, 10, 30):
            os.truncate(root / "data/FashionMNIST/raw" / name.removesuffix(".gz"), size)
            data._arrays.cache_clear()
            assert data.load(cfg).fingerprint == before
    assert server.asked == 4
    data._arrays.cache_clear()


@pytest.fixture
def shared():
    """A folder that other users may enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)
        os.chmod(folder, 0o755)


@pytest.mark.fault("F22")
def test_a_read_only_folder_of_whole_data_loads_without_a_lock(cifar, server, root, shared, start):
    loads(cifar[1])
    (root / "data" / TOP).rename(shared / TOP)
    os.chmod(shared, 0o555)
    there = replace(cifar[1], data_dir=str(shared))
    process = start(there, server.known, lower=True)
    assert process.wait() == 0, process.output()
    assert not list(shared.glob(".*"))
    os.truncate(shared / TOP / "data_batch_2", 100)
    process = start(there, server.known, lower=True)
    assert process.wait() == 1
    (line,) = process.output().splitlines()
    assert line.startswith(f"error: cifar10: not whole in {shared}") and "Permission denied" in line


def test_data_dir_that_is_a_file_is_refused(cifar, server, tmp_path):
    (tmp_path / "file").write_text("")
    refused(Config(dataset="cifar10", data_dir=str(tmp_path / "file")), "data_dir", "is not a folder")
    refused(Config(dataset="folder", data_dir=str(tmp_path / "file")), "is not a folder", kind=ConfigError)
    assert server.asked == 0


# ---- F15: hostile archives and pickles ----------------------------------------------------------------------------


def member(name, kind=tarfile.REGTYPE, link="", content=b""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info, content


@pytest.mark.fault("F15")
@pytest.mark.parametrize(
    "members",
    [
        lambda out: [member("../outside/evil", content=b"x")],
        lambda out: [member(f"{TOP}/../../outside/evil", content=b"x")],
        lambda out: [member("link", tarfile.SYMTYPE, str(out)), member("link/evil", content=b"x")],
        lambda out: [member("link", tarfile.SYMTYPE, "../outside"), member("link/evil", content=b"x")],
        lambda out: [member(TOP, tarfile.SYMTYPE, str(out))],
        lambda out: [member("link", tarfile.LNKTYPE, "../outside/kept")],
        lambda out: [member(f"{TOP}/pipe", tarfile.FIFOTYPE)],
        lambda out: [member(f"{TOP}/device", tarfile.CHRTYPE)],
    ],
)
def test_an_archive_that_reaches_outside_its_folder_is_refused(cifar, server, root, members):
    out = root / "outside"
    out.mkdir()
    (out / "kept").write_text("as it was")
    cifar[0](*members(out))
    refused(cifar[1], "cifar10", "set data_dir")
    assert [path.name for path in out.iterdir()] == ["kept"]
    assert (out / "kept").read_text() == "as it was"
    assert server.asked == 1  # its md5 is right
    assert not any(path.is_symlink() or path.is_fifo() for path in (root / "data").rglob("*"))


@pytest.mark.fault("F15")
def test_absolute_paths_in_an_archive_stay_in_its_folder(cifar, root):
    (root / "outside").mkdir()
    cifar[0](member(f"{root}/outside/evil", content=b"x"))
    loads(cifar[1])
    assert not list((root / "outside").iterdir())


@pytest.mark.fault("F15")
@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_pickle_that_was_tampered_with_is_not_run(cifar, server, root, tmp_path, name):
    loads(cifar[1])
    ran, path = tmp_path / "ran", root / "data" / TOP / name
    hostile = pickle.dumps(Payload(ran))
    path.write_bytes(hostile)
    kept = (root / "data/cifar-10-python.tar.gz").rename(tmp_path / "kept")
    server.serve = lambda n, content: b""
    refused(cifar[1], "cifar10", "put cifar-10-python.tar.gz there")
    assert path.read_bytes() == hostile
    kept.rename(root / "data/cifar-10-python.tar.gz")
    loads(cifar[1])
    assert not ran.exists()
    pickle.loads(hostile)
    assert ran.exists()  # it would have


@pytest.mark.fault("F15")
@pytest.mark.parametrize("kind", ["arrays", "pickle", "torn"])
def test_a_pickle_in_the_cache_is_not_run_and_the_images_are_decoded_anew(root, tmp_path, kind):
    cfg = pets(tmp_path)
    before = loaded(cfg)
    (path,) = (root / "runs/cache").glob("*.npz")
    ran = tmp_path / "ran"
    hostile = np.array([Payload(ran)], dtype=object)
    if kind == "arrays":
        np.savez(path, **{name: hostile for name in ("classes", "train", "train_labels", "test", "test_labels")})
    else:
        path.write_bytes(pickle.dumps(Payload(ran)) if kind == "pickle" else path.read_bytes()[:1000])
    assert loaded(cfg).fingerprint == before.fingerprint
    assert not ran.exists()
    assert set(np.load(path)) == {"classes", "train", "train_labels", "test", "test_labels", "remarks"}


# ---- hostile images -----------------------------------------------------------------------------------------------


def noise(w=8, h=8, seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (h, w, channels), dtype=np.uint8)


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pets(tmp_path, name="pets"):
    """The Config of a folder of two classes of four images."""
    top = tmp_path / name
    for i, kind in enumerate(("cat", "dog")):
        (top / kind).mkdir(parents=True)
        for n in range(4):
            (top / kind / f"{n}.png").write_bytes(saved(Image.fromarray(noise(seed=10 * i + n))))
    return Config(dataset="folder", data_dir=str(top), image_size=8, pretext="none")


def loaded(cfg):
    data._arrays.cache_clear()
    return data.load(cfg)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(w, h, rows, depth=8, colour=2, before=b"", after=b""):
    """A PNG written by hand: colour 0 is grey, 2 RGB; `rows` without filter bytes."""
    lines = b"".join(b"\0" + row for row in rows)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", zlib.compress(lines)) + after + chunk(b"IEND", b"")


def brief(value):
    """A name of a case without the content of its file."""
    return value if isinstance(value, str) else type(value).__name__


RGB, WIDE = noise(), noise(9, 1, seed=1)
SIXTEEN = np.random.default_rng(2).integers(0, 65536, (8, 8, 3)).astype(">u2")
PALETTE = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=7)
FLAT = Image.new("RGB", (1, 1), (90, 90, 90))
SCALED = np.round(SIXTEEN * (255 / 65535)).astype(np.uint8)
OPAQUE = np.full((8, 8, 1), 65535, ">u2")
SMOOTH = np.linspace(0, 255, 4 * 6 * 3).reshape(4, 6, 3).astype(np.uint8)


def sixteen(colour, values):
    """A PNG of 16 bits a channel: colour 2 is RGB, 4 grey and alpha, 6 RGB and alpha."""
    return png(8, 8, [row.tobytes() for row in values.astype(">u2")], depth=16, colour=colour)


def turned(orientation):
    """Notes of a camera that was turned."""
    notes = Image.Exif()
    notes[0x0112] = orientation
    return notes


def grey(pixels):
    return np.repeat(pixels[..., :1], 3, 2)


def signed_tiff():
    """A grey TIFF whose numbers are noted as signed."""
    file = io.BytesIO()
    Image.fromarray(RGB[..., 0]).save(file, "TIFF", tiffinfo={339: (2,)})
    return file.getvalue()


def wide_tiff(photometric):
    """A TIFF of 16 bits a channel, in which a low number is dark, or with "miniswhite" bright."""
    file, values = io.BytesIO(), SIXTEEN.astype(np.uint16)
    tifffile.imwrite(file, values if photometric == "rgb" else values[..., 0], photometric=photometric)
    return file.getvalue()


def moving(kind):
    other = Image.fromarray(255 - RGB)
    return saved(Image.fromarray(RGB), kind, save_all=True, append_images=[other])


@pytest.mark.parametrize(
    ("name", "content", "pixels"),
    [
        ("x.png", saved(Image.fromarray(RGB)), RGB),
        ("x.jpg", saved(Image.fromarray(RGB)), RGB),  # a PNG all the same
        ("X.PNG", saved(PALETTE), np.asarray(PALETTE.convert("RGB"))),
        ("x.png", saved(Image.fromarray(RGB[..., 0])), np.repeat(RGB[..., :1], 3, 2)),
        ("x.png", sixteen(2, SIXTEEN), SCALED),
        ("x.png", sixteen(6, np.concatenate([SIXTEEN, OPAQUE], 2)), SCALED),
        ("x.png", sixteen(4, np.concatenate([SIXTEEN[..., :1], OPAQUE], 2)), grey(SCALED)),
        ("x.png", sixteen(0, SIXTEEN[..., 0]), grey(SCALED)),
        ("x.tif", saved(Image.fromarray(SIXTEEN[..., 0].astype(np.uint16)), "TIFF"), grey(SCALED)),
        ("x.pgm", b"P5 8 8 65535\n" + SIXTEEN[..., 0].tobytes(), grey(SCALED)),
        ("x.ppm", b"P6 8 8 65535\n" + SIXTEEN.tobytes(), SCALED),
        ("x.png", saved(Image.fromarray(RGB).convert("RGBA")), RGB),
        ("x.png", saved(Image.fromarray(RGB[..., 0]).convert("LA")), grey(RGB)),
        ("x.png", saved(Image.fromarray(RGB), transparency=(1, 2, 3)), RGB),  # no pixel has this colour
        (
            "x.png",
            saved(Image.fromarray(RGB).convert("1")),
            grey(np.asarray(Image.fromarray(RGB).convert("1"))[..., None] * 255),
        ),
        ("x.gif", saved(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB"))),
        ("x.bmp", saved(Image.fromarray(RGB), "BMP"), RGB),
        ("x.tiff", saved(Image.fromarray(RGB), "TIFF"), RGB),
        ("x.tiff", saved(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"), RGB),
        ("x.webp", saved(Image.fromarray(RGB), "WEBP", lossless=True), RGB),
        ("x.ppm", saved(Image.fromarray(RGB), "PPM"), RGB),
        ("x.tif", saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"), RGB),
        ("x.png", png(4, 1, [b"\x1b"], 2, 0), np.repeat(np.uint8([[[0], [85], [170], [255]]]), 3, 2)),
        ("x.png", png(8, 8, [row.tobytes() for row in RGB], after=chunk(b"tEXt", b"a\0" + b"b" * 10**6)), RGB),
        ("x.png", saved(Image.fromarray(WIDE)), WIDE),
        ("x.png", saved(Image.fromarray(WIDE.transpose(1, 0, 2))), WIDE.transpose(1, 0, 2)),
        ("x.jpeg", saved(FLAT, "JPEG", quality=95), np.asarray(FLAT)),
    ],
    ids=brief,
)
def test_odd_but_harmless_images_are_decoded_as_they_are(tmp_path, name, content, pixels):
    (tmp_path / name).write_bytes(content)
    found = images.decode(tmp_path / name)
    assert found.dtype == np.uint8 and found.shape == pixels.shape and (found == pixels).all()
    assert images.resize(found[None], 8).shape == (1, 8, 8, 3)


def test_sixteen_bits_are_rounded_to_the_nearest_of_eight():
    values = np.arange(65536)
    assert (images.scaled(values) == np.floor(values * 255 / 65535 + 0.5)).all()


# Where row 0 and column 0 of the file are to be seen (EXIF 2.32, tag 274).
SEEN = {1: SMOOTH, 2: SMOOTH[:, ::-1], 3: SMOOTH[::-1, ::-1], 4: SMOOTH[::-1], 5: SMOOTH.transpose(1, 0, 2),
        6: SMOOTH[::-1].transpose(1, 0, 2), 7: SMOOTH[::-1, ::-1].transpose(1, 0, 2),
        8: SMOOTH[:, ::-1].transpose(1, 0, 2), 9: SMOOTH}  # fmt: skip


@pytest.mark.parametrize("orientation", SEEN)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_an_exif_orientation_is_applied(tmp_path, kind, orientation):
    lossless = {"lossless": True} if kind == "WEBP" else {}
    content = saved(Image.fromarray(SMOOTH), kind, exif=turned(orientation), **lossless)
    (tmp_path / "x").write_bytes(content)
    found = images.decode(tmp_path / "x")
    assert found.shape == SEEN[orientation].shape and (found == SEEN[orientation]).all()


def test_a_jpeg_is_turned_and_what_is_said_of_it_in_a_damaged_block_does_not_count(tmp_path):
    for name, options in (
        ("plain", {}),
        ("turned", {"exif": turned(8)}),
        ("damaged", {"exif": b"Exif\0\0II*\0\xff\xff\xff\xff"}),
    ):
        (tmp_path / name).write_bytes(saved(Image.fromarray(SMOOTH), "JPEG", **options))
    plain = images.decode(tmp_path / "plain")
    assert (images.decode(tmp_path / "turned") == plain[:, ::-1].transpose(1, 0, 2)).all()
    assert (images.decode(tmp_path / "damaged") == plain).all()


def test_of_a_photograph_with_a_preview_the_photograph_is_read(tmp_path):
    first, preview = Image.fromarray(SMOOTH), Image.new("RGB", (2, 2))
    (tmp_path / "x.jpg").write_bytes(saved(first, "MPO", save_all=True, append_images=[preview]))
    (tmp_path / "plain.jpg").write_bytes(saved(first, "JPEG"))
    assert Image.open(tmp_path / "x.jpg").n_frames == 2
    assert (images.decode(tmp_path / "x.jpg") == images.decode(tmp_path / "plain.jpg")).all()


def zipped():
    with zipfile.ZipFile(file := io.BytesIO(), "w") as made:
        made.writestr("x.png", saved(Image.fromarray(RGB)))
    return file.getvalue()


BOMB = zlib.compress(bytes(50 * 10**6))
NOT_AN_IMAGE, NO_MODE, NO_GLASS = "not readable as an image", "convert it to 8-bit RGB or grey", "transparent; put it on"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", NOT_AN_IMAGE),
        (b"\x89PNG\r\n\x1a\n", NOT_AN_IMAGE),
        (b"some text\n", NOT_AN_IMAGE),
        (b"<!DOCTYPE html>\n<html>404</html>", NOT_AN_IMAGE),
        (zipped(), NOT_AN_IMAGE),
        (saved(Image.fromarray(RGB), "ICO"), NOT_AN_IMAGE),
        (saved(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"), f"mode F (1 channels); {NO_MODE}"),
        (saved(Image.fromarray(RGB[..., 0].astype(np.int32)), "TIFF"), f"mode I (1 channels); {NO_MODE}"),
        (saved(Image.fromarray(RGB).convert("LAB"), "TIFF"), f"mode LAB (3 channels); {NO_MODE}"),
        (saved(Image.fromarray(RGB).convert("YCbCr"), "TIFF"), f"mode YCbCr (3 channels); {NO_MODE}"),
        (wide_tiff("rgb"), f"mode RGB (3 channels, 16 bits) in a TIFF file; {NO_MODE}"),
        (wide_tiff("miniswhite"), f"mode I;16 (1 channels, 16 bits) in a TIFF file; {NO_MODE}"),
        (signed_tiff(), f"mode L (1 channels, signed numbers); {NO_MODE}"),
        (moving("GIF"), "2 frames or pages; save the one that you mean"),
        (moving("PNG"), "2 frames or pages; save the one that you mean"),
        (moving("WEBP"), "2 frames or pages; save the one that you mean"),
        (moving("TIFF"), "2 frames or pages; save the one that you mean"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", NOT_AN_IMAGE),
        (saved(PALETTE, transparency=0), f"mode P, {NO_GLASS}"),
        (saved(Image.fromarray(RGB), transparency=tuple(map(int, RGB[3, 5]))), f"mode RGB, {NO_GLASS}"),
        (saved(Image.fromarray(noise(channels=2), "LA")), f"mode LA, {NO_GLASS}"),
        (saved(Image.fromarray(noise(channels=4))), f"mode RGBA, {NO_GLASS}"),
        (sixteen(6, np.concatenate([SIXTEEN, OPAQUE - 1], 2)), f"mode RGBA, {NO_GLASS}"),
        (png(60_000, 60_000, [b""]), "3600000000 pixels"),
        (png(13_377, 13_377, [b""]), "13377x13377 is more than 64,000,000 pixels; make it smaller"),
        (png(8000, 8001, [b""]), "8000x8001 is more than 64,000,000 pixels; make it smaller"),
        (png(2**31 - 1, 1, [b""]), "pixels"),
        (png(8000, 8000, [b""]), NOT_AN_IMAGE),
        (png(0, 8, [b""]), NOT_AN_IMAGE),
        (png(8, 8, [r.tobytes() for r in RGB], before=chunk(b"zTXt", b"a\0\0" + BOMB)), NOT_AN_IMAGE),
        (png(8, 8, [r.tobytes() for r in RGB], after=chunk(b"zTXt", b"a\0\0" + BOMB)), NOT_AN_IMAGE),
        (png(8, 8, [r.tobytes() for r in RGB], before=chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)), NOT_AN_IMAGE),
        (png(8, 8, [r.tobytes() for r in RGB], before=chunk(b"iCCP", b"a\0\0" + BOMB)), NOT_AN_IMAGE),
    ],
    ids=brief,
)
def test_what_is_no_image_or_not_of_a_kind_that_fits_is_refused_by_name(root, tmp_path, content, words, recwarn):
    cfg = pets(tmp_path)
    path = tmp_path / "pets/cat/x.png"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(cfg, f"{path}: ", words)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 450_000  # kB
    assert not recwarn


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "progressive", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_a_cut_image_is_refused_or_whole_and_a_damaged_one_never_crashes(tmp_path, kind):
    path, rng = tmp_path / "x.png", np.random.default_rng(0)
    options = {"progressive": True} if kind == "progressive" else {}
    content = saved(Image.fromarray(noise(6, 6)), "JPEG" if kind == "progressive" else kind, **options)
    path.write_bytes(content)
    whole = images.decode(path)
    accepted = []
    for n in {*range(0, len(content), 3), *range(len(content) - 30, len(content))}:
        path.write_bytes(content[:n])
        try:
            assert (images.decode(path) == whole).all(), n
            accepted.append(n)
        except DataError as error:
            assert str(error).startswith(f"{path}: not readable") and "\n" not in str(error)
    assert all(n >= len(content) - 20 for n in accepted)  # checksums and the end mark are missing
    for _ in range(150):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert images.decode(path).dtype == np.uint8
        except DataError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "not a file"),
        (lambda p: p.symlink_to("/dev/zero"), "not a file"),
        (lambda p: p.symlink_to("gone.png"), "No such file"),
        (lambda p: p.symlink_to(p.name), "symbolic links"),
    ],
)
def test_what_is_no_file_is_refused_by_name(root, tmp_path, make, words):
    cfg = pets(tmp_path)
    make(tmp_path / "pets/dog/x.png")
    refused(cfg, f"{tmp_path}/pets/dog/x.png: ", words, kind=BiasnbError)


def test_a_linked_image_is_read(root, tmp_path):
    cfg = pets(tmp_path)
    (tmp_path / "pets/dog/x.png").symlink_to("../cat/0.png")
    assert len(loaded(cfg).train.labels) + len(loaded(cfg).val.labels) == 7


def test_an_image_that_vanishes_is_refused_by_name(root, tmp_path, monkeypatch):
    cfg = pets(tmp_path)
    path, read = tmp_path / "pets/cat/3.png", data.read_image

    def vanishing(file):
        path.unlink(missing_ok=True)
        return read(file)

    monkeypatch.setattr(data, "read_image", vanishing)
    refused(cfg, f"{path}: ", "not a file")


@pytest.mark.parametrize("within", [contextlib.nullcontext, keys.snapshot])
def test_images_that_change_while_they_are_read_are_refused(root, tmp_path, monkeypatch, within):
    """Or else their pixels would be kept for those that the key was made from."""
    cfg = pets(tmp_path)
    path, read = tmp_path / "pets/cat/3.png", data.read_image

    def changing(file):
        path.write_bytes(saved(Image.fromarray(noise(seed=99))))
        return read(file)

    with within():
        before = key(cfg)
        monkeypatch.setattr(data, "read_image", changing)
        refused(cfg, f"{tmp_path}/pets: images have changed while they were read; start again")
    monkeypatch.setattr(data, "read_image", read)
    assert key(cfg) != before and len(loaded(cfg).classes) == 2


@pytest.mark.parametrize("hidden", ["pets/dog/x.png", "pets/dog"])
def test_what_may_not_be_read_is_refused_by_name(root, shared, start, hidden):
    cfg = pets(shared)
    path = shared / hidden
    if path.suffix:
        path.write_bytes(saved(Image.fromarray(RGB)))
    os.chmod(path, 0)
    process = start(cfg, {}, lower=True)
    assert process.wait() == 1
    os.chmod(path, 0o755)
    (line,) = [line for line in process.output().splitlines() if line.startswith("error")]
    assert f"{path}: " in line and "Permission denied" in line and "Traceback" not in process.output()


def test_an_empty_class_folder_is_refused_by_name(root, tmp_path):
    cfg = pets(tmp_path)
    (tmp_path / "pets/cow").mkdir()
    refused(cfg, f"{tmp_path}/pets/cow: holds no image (.jpg, ")


NAMES = [b"two\nlines", "кот и пёс".encode(), b"-rf", b"\xff\xfe", b"esc\x1b[31m", b"a\xe2\x80\xa8b"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["class", "file", "folder"])
def test_any_name_survives_in_keys_records_and_messages(root, tmp_path, name, where, capsys):
    cfg = pets(tmp_path, name=os.fsdecode(name) if where == "folder" else "pets")
    top, odd = Path(cfg.data_dir), os.fsdecode(name)
    cat = (top / "cat").rename(top / odd) if where == "class" else top / "cat"
    file = (cat / "0.png").rename(cat / f"{odd}.png") if where == "file" else cat / "0.png"
    assert key(cfg).encode("ascii")
    first, again = loaded(cfg), loaded(cfg)  # the second is from the cache
    assert first.classes == again.classes and first.summary() == again.summary()
    assert "\x1b" not in capsys.readouterr().out
    for text in (first.name, *first.classes):
        assert text.encode() and len(text.splitlines()) == 1 and "\x1b" not in text
    assert first.classes == tuple(sorted(first.classes)) or where == "class"
    assert json.loads(json.dumps(first.summary(), ensure_ascii=False).encode()) == json.loads(json.dumps(first.summary()))
    file.write_bytes(b"no image")
    text = refused(cfg, "not readable as an image")
    assert len(text.splitlines()) == 1 and "\x1b" not in text
    if name.isascii() and name.decode().isprintable():
        assert str(file) in text


# ---- what was read of a folder, and what was left out ---------------------------------------------------------------


def fill(top, files):
    for name, content in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content)


def picture(seed, kind="PNG", **options):
    return saved(Image.fromarray(noise(seed=seed)), kind, **options)


TAKEN = {  # name -> (content, pixels)
    **{f"Train/cat/{i}.png": (picture(i), noise(seed=i)) for i in range(10)},
    **{f"Train/dog/{i}.bmp": (picture(20 + i, "BMP"), noise(seed=20 + i)) for i in range(4)},
    "Train/dog/indoors/1.webp": (picture(30, "WEBP", lossless=True), noise(seed=30)),
    "Train/dog/indoors/left/1.tiff": (picture(31, "TIFF"), noise(seed=31)),
    "Train/dog/16.PNG": (sixteen(2, SIXTEEN), SCALED),
    "Train/dog/cmyk.tif": (saved(Image.fromarray(noise(seed=32)).convert("CMYK"), "TIFF"), noise(seed=32)),
    "Train/dog/grey.png": (saved(Image.fromarray(RGB[..., 0])), grey(RGB)),
    "Train/dog/opaque.png": (saved(Image.fromarray(noise(seed=33)).convert("RGBA")), noise(seed=33)),
    "Train/dog/turned.png": (picture(34, exif=turned(6)), noise(seed=34)[::-1].transpose(1, 0, 2)),
    "Test/cat/copy.png": (picture(0), noise(seed=0)),
    "Test/cat/again.ppm": (picture(1, "PPM"), noise(seed=1)),
    **{f"Test/cat/{i}.png": (picture(40 + i), noise(seed=40 + i)) for i in range(4)},
    **{f"Test/dog/{i}.gif": (saved(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB"))) for i in range(2)},
}
LEFT_OUT = {
    "Train/cat/._0.png": b"\0\5\x16\7",
    "Train/cat/.hidden.png": picture(0),
    ".git/x.png": picture(0),
    "__MACOSX/Train/cat/._0.png": b"",
    "Train/loose.png": picture(50),
    "cow/1.png": picture(51),
    "cow/2.png": picture(52),
    "stray.jpg": picture(53),
    "Train/dog/phone.heic": b"ftypheic",
    "Test/cat/Thumbs.db": b"",
    "labels.csv": b"",
}
REFUSED = {
    "Test/cat/empty.png": (b"", "not readable"),
    "Test/cat/half.png": (picture(60)[:100], "not readable"),
    "Test/cat/page.jpg": (b"<!DOCTYPE html>", "not readable"),
    "Test/dog/float.tiff": (saved(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"), "mode F"),
    "Test/dog/glass.png": (saved(Image.fromarray(noise(channels=4))), "transparent"),
    "Test/dog/moving.gif": (moving("GIF"), "2 frames"),
    "Train/cat/cut.bmp": (picture(61, "BMP")[:-9], "not readable"),
    "Train/cat/cut.webp": (picture(62, "WEBP", lossless=True)[:-9], "not readable"),
    "Train/cat/huge.png": (png(60_000, 60_000, [b""]), "pixels"),
    "Train/cat/signed.tiff": (signed_tiff(), "signed"),
    "Train/dog/cut.ppm": (picture(63, "PPM")[:-9], "not readable"),
    "Train/dog/cut.tiff": (picture(64, "TIFF")[:-99], "not readable"),
    "Train/dog/deep.tif": (wide_tiff("rgb"), "16 bits"),
    "Train/dog/lab.tif": (saved(Image.fromarray(RGB).convert("LAB"), "TIFF"), "mode LAB"),
    "Train/dog/pages.tiff": (moving("TIFF"), "2 frames"),
    "Train/dog/text.png": (b"some text", "not readable"),
    "Train/dog/torn.gif": (picture(65, "GIF")[:200], "not readable"),
    "Train/dog/zip.jpeg": (zipped(), "not readable"),
    "Train/dog/disc.png": (None, "not a file"),
    "Train/dog/torn.jpg": (picture(66, "JPEG")[:300], "not readable"),
}


def test_of_sixty_ordinary_and_hostile_files_each_is_read_right_or_named_with_the_reason(root, capsys):
    """First all that cannot be used are named, then, once they are gone, it is said what was read and what was left out."""
    assert len(TAKEN) + len(LEFT_OUT) + len(REFUSED) == 60
    top, cfg = root / "pets", Config(dataset="folder", data_dir=str(root / "pets"), image_size=8, batch=16)
    fill(top, {name: content for name, (content, _) in TAKEN.items()} | LEFT_OUT)
    fill(top, {name: content for name, (content, _) in REFUSED.items() if content is not None})
    os.mkfifo(top / "Train/dog/disc.png")
    (top / "Train/dog/back").symlink_to(top)
    text = refused(cfg, f"{len(REFUSED)} images cannot be used: {top}/", f"; and {len(REFUSED) - 3} more: ")
    assert all(name in text for name in REFUSED) and not any(name in text for name in TAKEN)
    for name, (_, why) in REFUSED.items():
        with pytest.raises(DataError, match=f"{name}: .*{why}"):
            images.decode(top / name)
        (top / name).unlink()
    d = loaded(cfg)
    assert capsys.readouterr().out.splitlines() == [
        "pets: 21 train, 8 test images in 2 classes (cat, dog); left out: "
        "files of kinds that are not read: 3 (labels.csv, Test/cat/Thumbs.db, Train/dog/phone.heic), "
        "hidden files or folders: 4 (.git/, __MACOSX/, Train/cat/._0.png, ...), "
        "images beside class folders: 1 (Train/loose.png), "
        "images beside train/ and test/: 3 (cow/, stray.jpg), "
        "links to a folder above: 1 (Train/dog/back/)",
        "pets: warning: CMYK images converted to RGB without their colour profiles: 1 (Train/dog/cmyk.tif)",
        "pets: warning: test images that are in train, too: 2 of 8 (Test/cat/again.ppm, Test/cat/copy.png)",
    ]
    shutil.copytree(top, root / "other", ignore=shutil.ignore_patterns("back"))
    other, lines = said_of(replace(cfg, data_dir=str(root / "other")), capsys)
    assert other.fingerprint == d.fingerprint and (other.name, lines[0][:8]) == ("other", "other: 2")  # from the cache, too
    classes, arrays = data.read_folder(top, 8)
    assert classes == d.classes == ("cat", "dog")
    for split, part in (("Train", "train"), ("Test", "test")):
        expected = [(name, pixels) for name, (_, pixels) in sorted(TAKEN.items()) if name.startswith(split)]
        assert arrays[f"{part}_labels"].tolist() == ["/dog/" in name for name, _ in expected]
        for (name, pixels), found in zip(expected, arrays[part], strict=True):
            assert (found == pixels).all(), name


def said_of(cfg, capsys):
    """(what was loaded, the lines that were printed)"""
    capsys.readouterr()
    found = loaded(cfg)
    return found, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "Valid", "Test"), ("TRAINING", "Validation", "testing")])
def test_splits_are_known_by_their_usual_names(root, capsys, names):
    top = root / "pets"
    for number, name in enumerate(names):
        fill(top, {f"{name}/{kind}/{i}.png": picture(100 * number + 10 * (kind == "dog") + i) for kind in ("cat", "dog")
                   for i in range(4)})  # fmt: skip
    cfg = Config(dataset="folder", data_dir=str(top), image_size=8, pretext="none")
    d, lines = said_of(cfg, capsys)
    assert lines == ["pets: 8 train, 8 val, 8 test images in 2 classes (cat, dog)"]
    for number, part in enumerate(("train", "val", "test")):
        assert (getattr(d, part).images[0].numpy() == noise(seed=100 * number)).all()
    assert Config(dataset="folder", data_dir=str(top), pretext="supervised").pretext == "supervised"  # two classes
    fill(top, {"dev/cat/0.png": b"", "val/cat/0.png": b"", "valid/cat/0.png": b""})
    refused(cfg, "data_dir: ", "/ for val; keep one", kind=ConfigError)


def test_classes_may_be_called_like_a_split(root, capsys):
    top = root / "parts"
    fill(top, {f"{name}/{i}.png": picture(10 * len(name) + i) for name in ("valid", "invalid") for i in range(5)})
    d, lines = said_of(Config(dataset="folder", data_dir=str(top), image_size=8, pretext="none"), capsys)
    assert d.classes == ("invalid", "valid") and lines == ["parts: 8 train, 2 test images in 2 classes (invalid, valid)"]


def test_a_folder_around_a_folder_with_splits_is_named(root):
    top = root / "download"
    fill(top / "pets", {f"{part}/{kind}/{i}.png": picture(i) for part in ("train", "test") for kind in ("cat", "cow")
                        for i in range(4)})  # fmt: skip
    cfg = Config(dataset="folder", data_dir=str(top), image_size=8, pretext="none")
    refused(cfg, f"{top}: holds only pets/, which is split into train and test; set data_dir to {top / 'pets'}")


def test_a_class_without_an_image_in_a_split_is_named(root, capsys):
    top = root / "pets"
    fill(top, {f"{part}/{kind}/{i}.png": picture(i) for part in ("train", "test") for kind in ("cat", "cow") for i in range(4)})
    shutil.rmtree(top / "test/cow")
    cfg = Config(dataset="folder", data_dir=str(top), image_size=8, pretext="none")
    refused(cfg, f"{top}: class cow is in train, but not in test; add images of it there, or remove it from train")
    (top / "test/cow").mkdir()
    refused(cfg, f"{top}/test/cow: holds no image")
    (top / "train").rename(top / "few")
    fill(top / "few", {"dog/1.png": picture(9)})
    _, lines = said_of(replace(cfg, data_dir=str(top / "few")), capsys)
    assert lines[1:] == [
        "few: warning: train images that occur more than once: 2 of 7 (cow/0.png, cow/3.png)",
        "few: warning: test images that are in train, too: 2 of 2 (cat/1.png, cow/2.png)",
        "few: warning: images that are in several classes: 8 (cat/1.png, cow/2.png, cat/0.png, ...)",
        "few: warning: no test image of class dog; add images of it",
    ]


@pytest.mark.parametrize(
    ("count", "batch", "words"),
    [
        (27, 32, "batch: 32 images, but pets has 20 to train on, besides 2 for validation and 5 to test; choose batch 20"),
        (2, 64, "batch: 64 images, but pets has 0 to train on, besides 1 for validation and 1 to test; add images, training "
                "needs 2 or more"),
        (2, 2, "pets has 0 to train on"),
        (1, 2, "pets has 0 to train on, besides 0 for validation and 1 to test; add images"),
    ],
)  # fmt: skip
def test_with_too_few_images_for_a_batch_it_is_said_which_batch_fits_or_how_many_are_needed(root, count, batch, words):
    top = root / "pets"
    fill(top, {f"{i}.png": picture(i) for i in range(count)})
    cfg = Config(dataset="folder", data_dir=str(top), image_size=8, patch=2, batch=batch)
    refused(cfg, words)
    if "choose batch 20" in words:
        assert len(loaded(replace(cfg, batch=20)).pool.labels) == 20


def test_a_batch_that_hides_too_few_tokens_says_which_batch_does():
    with pytest.raises(ConfigError, match=r"^mask_rate: 0.5 hides 8 of the 16 tokens of a batch .* choose batch 2 or more"):
        Config(image_size=8, batch=1)
    assert Config(image_size=8, batch=2).batch == 2
