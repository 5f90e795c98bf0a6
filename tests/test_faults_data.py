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
import torchvision.datasets
from forked import until
from PIL import Image

from biasnb.config import BiasnbError, Config, ConfigError
from biasnb.data import datasets as data
from biasnb.data import downloads, images
from biasnb.data.datasets import DataError
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
    assert set(np.load(path)) == {"classes", "train", "train_labels", "test", "test_labels"}


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
TURNED = Image.Exif()
TURNED[0x0112] = 6  # turn by a quarter to view


@pytest.mark.parametrize(
    ("name", "content", "pixels"),
    [
        ("x.png", saved(Image.fromarray(RGB)), RGB),
        ("x.jpg", saved(Image.fromarray(RGB)), RGB),  # a PNG all the same
        ("X.PNG", saved(PALETTE), np.asarray(PALETTE.convert("RGB"))),
        ("x.png", saved(Image.fromarray(RGB[..., 0])), np.repeat(RGB[..., :1], 3, 2)),
        ("x.png", png(8, 8, [row.tobytes() for row in SIXTEEN], depth=16), (SIXTEEN >> 8).astype(np.uint8)),
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


def test_an_exif_orientation_is_not_applied(tmp_path):
    smooth = Image.fromarray(np.linspace(0, 255, 8 * 16 * 3).reshape(8, 16, 3).astype(np.uint8))
    for name, options in (("plain.jpg", {}), ("turned.jpg", {"exif": TURNED})):
        (tmp_path / name).write_bytes(saved(smooth, "JPEG", **options))
    assert Image.open(tmp_path / "turned.jpg").getexif()[0x0112] == 6
    assert images.decode(tmp_path / "turned.jpg").shape == (8, 16, 3)
    assert (images.decode(tmp_path / "turned.jpg") == images.decode(tmp_path / "plain.jpg")).all()


def zipped():
    with zipfile.ZipFile(file := io.BytesIO(), "w") as made:
        made.writestr("x.png", saved(Image.fromarray(RGB)))
    return file.getvalue()


BOMB = zlib.compress(bytes(50 * 10**6))
NOT_AN_IMAGE, NO_MODE = "not readable as a JPEG or PNG image", "convert it to 8-bit RGB or grey"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", NOT_AN_IMAGE),
        (b"\x89PNG\r\n\x1a\n", NOT_AN_IMAGE),
        (b"some text\n", NOT_AN_IMAGE),
        (b"<!DOCTYPE html>\n<html>404</html>", NOT_AN_IMAGE),
        (zipped(), NOT_AN_IMAGE),
        (saved(Image.fromarray(RGB), "GIF"), NOT_AN_IMAGE),
        (saved(Image.fromarray(RGB), "BMP"), NOT_AN_IMAGE),
        (saved(Image.fromarray(RGB), "TIFF"), NOT_AN_IMAGE),
        (saved(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF"), NOT_AN_IMAGE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", NOT_AN_IMAGE),
        (saved(PALETTE, transparency=0), f"mode P (1 channels, transparent); {NO_MODE}"),
        (saved(Image.fromarray(RGB), transparency=(1, 2, 3)), f"mode RGB (3 channels, transparent); {NO_MODE}"),
        (saved(Image.fromarray(RGB).convert("LA")), f"mode LA (2 channels); {NO_MODE}"),
        (saved(Image.fromarray(RGB).convert("RGBA")), f"mode RGBA (4 channels); {NO_MODE}"),
        (saved(Image.fromarray(RGB).convert("CMYK"), "JPEG"), f"mode CMYK (4 channels); {NO_MODE}"),
        (png(8, 8, [row.tobytes() for row in SIXTEEN[..., 0]], 16, 0), NO_MODE),
        (saved(Image.fromarray(RGB).convert("1")), f"mode 1 (1 channels); {NO_MODE}"),
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


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "progressive"])
def test_a_cut_image_is_refused_or_whole_and_a_damaged_one_never_crashes(tmp_path, kind):
    path, rng = tmp_path / "x.png", np.random.default_rng(0)
    options = {"progressive": True} if kind == "progressive" else {}
    content = saved(Image.fromarray(noise(6, 6)), "PNG" if kind == "PNG" else "JPEG", **options)
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
        (lambda p: p.mkdir(), "not a file"),
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
    path, decode = tmp_path / "pets/cat/3.png", data.decode

    def vanishing(file):
        path.unlink(missing_ok=True)
        return decode(file)

    monkeypatch.setattr(data, "decode", vanishing)
    refused(cfg, f"{path}: ", "not a file")


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
    refused(cfg, f"{tmp_path}/pets/cow: holds no JPEG or PNG image")


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
    for text in (first.name, *first.classes):
        assert text.encode() and len(text.splitlines()) == 1 and "\x1b" not in text
    assert first.classes == tuple(sorted(first.classes)) or where == "class"
    assert json.loads(json.dumps(first.summary(), ensure_ascii=False).encode()) == json.loads(json.dumps(first.summary()))
    file.write_bytes(b"no image")
    text = refused(cfg, "not readable as a JPEG or PNG image")
    assert len(text.splitlines()) == 1 and "\x1b" not in text
    if name.isascii() and name.decode().isprintable():
        assert str(file) in text
