"""The configuration of a run, a flat, frozen and validated dataclass. Profiles are data in profiles.toml."""

import difflib
import math
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

from .operators import MIXERS

PHOTOGRAPHS_VERSION = DIGITS_VERSION = 1  # part of the key; increase a version when its embedded data change
LEAVES_VERSION = 2
CIFAR10_JPEG = "f10d4c9e536a564f"  # digest of the image files, see `datasets.files_digest`
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm")
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}  # lower-case name of a folder -> the split that it holds
VERSIONS = {"photographs": PHOTOGRAPHS_VERSION, "digits": DIGITS_VERSION, "digits_coded": DIGITS_VERSION,
            "leaves": LEAVES_VERSION, "leaves_coded": LEAVES_VERSION, "cifar10_jpeg": CIFAR10_JPEG}  # fmt: skip
CODED = {"digits_coded": "digits", "leaves_coded": "leaves"}  # data set recoloured by position -> the original data set
SHALLOW = 4  # blocks; the paper gives no number for "relatively shallow" (Figure 1)
LEAST_HIDDEN = 16  # hidden tokens per batch on average (bert)
MAX_SIZE = 256  # side of an image, pixels
MAX_TOKENS = 64**2  # operators store N x N masks and 8-byte indices, about 0.2 GB per block at this size
DATASETS = (*VERSIONS, "cifar10", "cifar100", "svhn", "stl10", "fashionmnist", "folder")


class BiasnbError(Exception):
    """An error that the user can correct. Its one-line message names the setting or file, the value and the remedy."""

    def _render_traceback_(self):
        """Show only the message in a notebook, without the traceback (IPython calls this method)."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(BiasnbError, ValueError):
    """Raised for a configuration that cannot be run."""


def _field(default, meaning, choices=None, low=None, high=None):
    return field(default=default, metadata={"meaning": meaning, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one run. The class is immutable; use `dataclasses.replace` to vary it.

    Construction raises ConfigError for an unknown field, a wrong type, a value out of range or an impossible combination. The
    message gives the reason and the remedy."""

    dataset: str = _field("photographs", "data set, 'folder' for class folders of images", DATASETS)
    data_dir: str = _field("", "the image folder, or where downloads and cifar10_jpeg are (default: data/ in the checkout)")
    image_size: int = _field(16, "side of the square images, pixels", low=4, high=MAX_SIZE)
    augment: str = _field("none", "augmentation of training images", ("none", "flip", "crop"))
    images: int = _field(0, "training images without labels, the first of the seed's order; 0: all", low=0, high=10**9)
    labelled: int = _field(0, "labelled training images (probe, supervised); 0: all", low=0, high=10**9)
    permute: str = _field("none", "one fixed permutation, the same for all images", ("none", "pixels", "patches", "in_patch"))
    input: str = _field("rgb", "what the network sees", ("rgb", "quantised", "palette"))
    target: str = _field("rgb", "squared error on RGB, or cross-entropy on palette colours", ("rgb", "palette"))
    colours: int = _field(64, "palette size K, colours", low=2, high=4096)
    patch: int = _field(2, "side of a token, pixels", (1, 2, 4))
    position: str = _field("learned", "where tokens get their place from", ("none", "learned", "sinusoid", "relative"))
    padding: str = _field("zeros", "beyond the border", ("zeros", "circular"))
    mixer: str = _field("convmixer", "operator that mixes positions", MIXERS)
    depth: int = _field(4, "blocks L", low=1, high=64)
    width: int = _field(64, "channels D", low=4, high=4096)
    heads: int = _field(4, "mixing matrices per layer G (cells, attention)", low=1, high=64)
    kernel: int = _field(5, "side of the window, tokens (local operators)", low=1, high=31)
    rank: int = _field(2, "kernels K that positions combine (lowrank)", low=1, high=4096)
    local_heads: int = _field(1, "heads that see their window only (attn_local_heads)", low=0, high=64)
    token_ratio: int = _field(2, "hidden size of the token MLP over N (mixer)", low=1, high=16)
    mlp_ratio: int = _field(4, "hidden size of the channel MLP over D", low=1, high=16)
    skip: str = _field("both", "residual connections", ("both", "none", "channel", "spatial"))
    blocks: str = _field("separate", "L blocks with weights of their own, or one repeated L times", ("separate", "repeated"))
    pretext: str = _field("bert", "training task", ("bert", "ar", "denoise", "supervised", "none"))
    mask_rate: float = _field(0.5, "probability that a token is hidden (bert)", low=0.01, high=0.95)
    hidden: str = _field("vector", "what stands for a hidden token: a learned vector, or zero (bert)", ("vector", "zero"))
    noise: float = _field(0.5, "standard deviation of the noise over that of the pixels (denoise)", low=0.01, high=10.0)
    budget: str = _field("steps", "equal steps, or the training FLOP that identity spends in them", ("steps", "flop"))
    steps: int = _field(400, "training steps", low=1, high=10_000_000)
    batch: int = _field(64, "images per step", low=1, high=65_536)
    optimizer: str = _field("adamw", "what updates the weights of linear maps inside blocks; AdamW the rest", ("adamw", "muon"))
    lr: float = _field(2e-3, "peak learning rate", low=1e-8, high=10.0)
    warmup: float = _field(0.1, "fraction of the steps in linear warm-up", low=0.0, high=0.9)
    weight_decay: float = _field(0.01, "decoupled weight decay of matrices, kernels and tables, times lr", low=0.0, high=10.0)
    clip: float = _field(1.0, "gradient norm above which it is scaled down", low=1e-6, high=1e6)
    precision: str = _field("fp32", "arithmetic of matrix products", ("fp32", "bf16"))
    seed: int = _field(0, "seed of initial weights, image order and masks", low=0, high=2**31 - 1)
    device: str = _field("auto", "where to compute", ("auto", "cpu", "cuda"))

    def __new__(cls, **given):
        check_names(given, [f.name for f in fields(cls)])
        return super().__new__(cls)

    def __post_init__(self):
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))
        if self.data_dir:
            object.__setattr__(self, "data_dir", str(full_path(self.data_dir)))
        for trouble in self._troubles():
            raise ConfigError(trouble)

    def _troubles(self):
        """Yield one message per impossible combination: the setting, the reason and the remedy."""
        reads, operator = self.reads, MIXERS[self.mixer]
        if self.image_size % self.patch:
            fits = [p for p in (1, 2, 4) if self.image_size % p == 0]
            yield f"patch: {self.patch} does not divide image_size {self.image_size}; choose from {fits}"
        if self.grid**2 > MAX_TOKENS:
            fits = [f"patch {p} or " for p in (2, 4) if self.image_size % p == 0 and (self.image_size // p) ** 2 <= MAX_TOKENS]
            yield (f"patch: {self.patch} on {self.image_size} pixels gives {self.grid**2} tokens, more than {MAX_TOKENS}; "
                   f"choose {''.join(fits[:1])}image_size {self.patch * math.isqrt(MAX_TOKENS)}")  # fmt: skip
        if "heads" in reads and self.width % self.heads:
            fits = [g for g in range(1, self.heads + 1) if self.width % g == 0]
            yield f"heads: {self.heads} does not divide width {self.width}; the nearest is {fits[-1]}"
        if "local_heads" in reads and self.local_heads > self.heads:
            yield f"local_heads: {self.local_heads} of {self.heads} heads; choose at most {self.heads}"
        if self.kernel % 2 == 0:
            yield f"kernel: {self.kernel} has no centre; choose an odd number, e.g. {self.kernel + 1}"
        if self.causal and self.grid < 2:
            who = "pretext 'ar'" if self.pretext == "ar" else f"mixer {self.mixer!r}"
            yield f"patch: {self.patch} leaves one token, and {who} reads earlier ones; choose a smaller one"
        if self.mixer in ("hyena", "hyena_hybrid") and self.skip in ("none", "channel"):
            yield f"skip: {self.skip!r}, but {self.mixer}'s gates cannot start near the identity; choose 'both' or 'spatial'"
        if self.mixer in ("hyena", "hyena_hybrid") and self.position == "none":  # the query is linear in the token itself
            if self.causal == "entry":
                yield (f"position: 'none', but what {self.mixer} reads is multiplied by a query that is 0 without positions "
                       f"where pixels enter pretext {self.pretext!r}; choose 'learned' or 'sinusoid'")  # fmt: skip
            if self.pretext == "bert" and self.hidden == "zero":
                yield (f"hidden: 'zero', but what {self.mixer} reads for a hidden token is multiplied by a query that is 0 "
                       f"without positions; choose hidden 'vector', or position 'learned'")  # fmt: skip
        if self.permute == "in_patch" and self.patch == 1:
            yield "permute: 'in_patch' moves nothing in a patch of 1 pixel; choose patch 2 or 4, or permute 'patches'"
        if self.padding == "circular":
            if self.pretext == "ar":
                yield "padding: 'circular' shows pixels of the future to pretext 'ar'; choose padding 'zeros'"
            if "kernel" in reads and self.kernel > self.grid:
                fits = self.grid - 1 + self.grid % 2
                yield f"kernel: {self.kernel} wraps round a grid of {self.grid} tokens onto itself; choose at most {fits}"
        if self.position == "relative" and (operator.operator != "Attention" or operator.biased):
            why = "has its own table of positions" if operator.operator == "Attention" else "is not softmax attention"
            yield f"position: 'relative' is a term inside attention, but mixer {self.mixer!r} {why}; choose 'none' or 'learned'"
        if self.mixer == "conv_two_stream" and self.pretext not in ("ar", "none"):
            yield f"mixer: 'conv_two_stream' puts pixels in an order, pretext {self.pretext!r} has none; choose 'ar'"
        if self.mixer == "hyena_hybrid" and self.blocks == "repeated":
            yield "mixer: 'hyena_hybrid' is made of two kinds of block, blocks 'repeated' has one; choose blocks 'separate'"
        if self.dataset in CODED and self.augment != "none":
            yield f"augment: {self.augment!r} moves pixels between the places that {self.dataset!r} codes; choose 'none'"
        if self.batch < self.least_batch:
            tokens = self.batch * self.grid**2
            yield (f"mask_rate: {self.mask_rate} hides {tokens * self.mask_rate:.2g} of the {tokens} tokens of a batch on "
                   f"average, fewer than {LEAST_HIDDEN}; choose batch {self.least_batch} or more, or raise mask_rate or "
                   f"image_size")  # fmt: skip
        if self.pretext != "none" and self.lr * self.weight_decay > 1:
            yield (f"weight_decay: {self.weight_decay} times lr {self.lr} takes more than all of a weight off in a step; "
                   f"choose at most {math.floor(999 / self.lr) / 1000}, or a lower lr")  # fmt: skip
        if self.labelled == 1:
            yield "labelled: 1 image gives a probe nothing to tell apart; choose 2 or more, or 0 for all"
        if self.dataset == "folder" and not self.data_dir:
            yield "data_dir: empty, and dataset is 'folder'; set it to a folder of class folders"
        labels = self.dataset == "folder" and self.pretext == "supervised" and full_path(self.data_dir).is_dir()
        if labels and (classes := class_folders(self.data_dir)) < 2:
            where = short(self.data_dir)
            yield f"pretext: 'supervised' needs two classes or more, {where} has {classes}; add one or choose 'bert'"

    @property
    def grid(self):
        """Side of the token grid, H = W = S / p."""
        return self.image_size // self.patch

    @property
    def least_batch(self):
        """The smallest batch size with which the pretext can be trained."""
        return math.ceil(LEAST_HIDDEN / (self.grid**2 * self.mask_rate)) if self.pretext == "bert" else 1

    @property
    def reads(self):
        """The operator-specific fields that this operator reads."""
        kinds = (self.mixer,) if self.mixer != "hyena_hybrid" else ("hyena", "igpt")
        return {name for kind in kinds for name in MIXERS[kind].reads}

    @property
    def circular(self):
        """Whether the operator treats the token grid as a torus."""
        return self.padding == "circular" and "padding" in self.reads

    @property
    def predicts(self):
        """Whether the pretext predicts pixels."""
        return self.pretext in ("bert", "ar", "denoise")

    @property
    def causal(self):
        """How later tokens are hidden: not at all (False), by a strictly causal first mixing ("entry", mask type A of van den
        Oord et al., arXiv 1601.06759), or by shifting the sequence by one token ("shift", image-GPT, section 3.1)."""
        if self.pretext != "ar" and self.mixer != "conv_two_stream":
            return False
        return "shift" if self.mixer == "igpt" or self.blocks == "repeated" else "entry"

    @property
    def uses_palette(self):
        return self.input != "rgb" or (self.target == "palette" and self.predicts)


def describe(cfg):
    """Return a short description of a run for the progress line."""
    task = "" if cfg.pretext == "bert" else f" {cfg.pretext}"
    return f"{cfg.mixer}{task}, depth {cfg.depth}, seed {cfg.seed}"


def fields_of():
    """Return {name: type} of the fields of Config."""
    return {f.name: f.type for f in fields(Config)}


def short(value, most=80):
    """Return the repr of a value on one line, with its middle left out if it is longer than `most` characters."""
    try:
        text = " ".join(repr(value).splitlines())
    except Exception:  # e.g. an integer of more than 4300 digits
        return f"<{type(value).__name__} that cannot be shown>"
    return text if len(text) <= most else f"{text[: most - 23]}...{text[-20:]}"


def nearest(word, words):
    """Return the most similar of the words; only the first 80 characters of `word` are compared."""
    return max(words, key=lambda w: difflib.SequenceMatcher(None, str(word)[:80].lower(), w.lower()).ratio())


def check_names(given, known, what="field"):
    """Raise ConfigError for a name that is not known; the message suggests the most similar one."""
    for name, value in given.items():
        if name not in known:
            plain = isinstance(name, str) and 0 < len(name) <= 80 and name.isprintable()
            text = name if plain else short(name)
            raise ConfigError(f"{text}: no such {what} (given {short(value)}); did you mean {nearest(name, known)!r}?")


def _checked(f, value):
    meta = f.metadata
    if type(value) is not f.type and not (f.type is float and type(value) is int):
        kind = {int: "a whole number", float: "a number", str: "text"}[f.type]
        raise ConfigError(f"{f.name}: {short(value)} is {type(value).__name__}, expected {kind}, e.g. {f.default!r}")
    if type(value) is float and not math.isfinite(value):
        raise ConfigError(f"{f.name}: {value!r} is not a finite number; e.g. {f.default!r}")
    if meta["choices"] and value not in meta["choices"]:
        near = (nearest if f.type is str else lambda v, c: min(c, key=lambda x: abs(x - v)))(value, meta["choices"])
        raise ConfigError(f"{f.name}: {short(value)} is not one of {list(meta['choices'])}; the nearest is {near!r}")
    if meta["low"] is not None and not meta["low"] <= value <= meta["high"]:
        near = min(max(value, meta["low"]), meta["high"])
        raise ConfigError(f"{f.name}: {short(value)} is outside {meta['low']} to {meta['high']}; the nearest is {near!r}")
    return value + 0.0 if f.type is float else value  # turns 1 into 1.0 and -0.0 into 0.0


PROFILES = tomllib.loads((Path(__file__).parent / "profiles.toml").read_text(encoding="utf-8"))


def check_profile(name):
    """Return the data of a profile. Raises ConfigError, suggesting the most similar name, for an unknown one."""
    if not isinstance(name, str) or name not in PROFILES:
        raise ConfigError(f"profile: {short(name)} is not one of {list(PROFILES)}; did you mean {nearest(name, PROFILES)!r}?")
    return PROFILES[name]


def configure(profile, settings=None, /, **fields):
    """Return the Config of a profile with some fields changed. Raises ConfigError."""
    return Config(**{**check_profile(profile)["config"], **check_settings(settings), **fields})


def check_settings(settings):
    """Return settings as a dict, {} for None. Raises ConfigError for any other type."""
    if not isinstance(settings, dict | None):
        raise ConfigError(f"settings: {short(settings)} is {type(settings).__name__}, expected a dict, e.g. {{'steps': 800}}")
    return dict(settings or {})


def full_path(data_dir):
    """Return the absolute path of a folder, which need not exist, with `~` expanded. Raises ConfigError for an invalid path."""
    try:
        path = Path(data_dir).expanduser()
        path.is_dir()
        return path.resolve()
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"data_dir: {short(data_dir)} is not a path that can be read ({why}); set it to a folder") from None


def split_folders(top):
    """Return {split: folder} of an image folder, {} if it has neither train/ nor test/ in a spelling of SPLITS. Raises
    ConfigError for two folders of one split, and OSError for a folder that cannot be listed."""
    found = {}
    for folder in sorted(folder for folder in top.iterdir() if folder.name.lower() in SPLITS and folder.is_dir()):
        split = SPLITS[folder.name.lower()]
        if split in found:
            raise ConfigError(f"data_dir: {short(str(top))} has {found[split].name}/ and {folder.name}/ for {split}; keep one")
        found[split] = folder
    return found if found.keys() & {"train", "test"} else {}


def is_hidden(name):
    """Return whether a file or folder is hidden, or is one that macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def class_folders(folder):
    """Return the number of class folders, in the training split if there is one; 0 if the folder does not exist."""
    top = full_path(folder)
    if not top.is_dir():
        return 0
    return sum(d.is_dir() and not is_hidden(d.name) for d in split_folders(top).get("train", top).iterdir())
