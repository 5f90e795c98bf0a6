"""Trained networks without their data: the description that is saved with the weights, and loading a network from both."""

import json
from pathlib import Path

import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors

from ..config import Config, check_profile, nearest
from ..data.palette import Palette
from ..records.files import StoreError, read_json
from ..records.keys import key_fields
from ..records.store import Store
from .model import Isotropic


class Pretrained(Isotropic, PyTorchModelHubMixin, library_name="biasnb"):
    """A trained network in the layout of the Hugging Face Hub, a folder with config.json and model.safetensors.
    `Pretrained.from_pretrained(folder)` reads it without a network connection, `save_pretrained(folder)` writes it.

    `settings` are Config fields; data_dir of a folder data set is dropped. `mean` and `std` are those of the training pixels
    per channel (0 to 255), `palette` is (K, 3) colours, `key` and `profile` identify the record with the metrics."""

    def __init__(self, *, mean, std, palette=None, classes=0, key="", profile="", **settings):
        if settings.get("dataset") == "folder":
            settings["data_dir"] = "."
        cfg = Config(**settings)
        colours = palette and Palette(torch.tensor(palette))
        super().__init__(cfg, (torch.tensor(mean), torch.tensor(std)), colours, classes)
        self.key, self.profile = key, profile

    @classmethod
    def _from_pretrained(cls, *, model_id, revision, cache_dir, force_download, local_files_only, token, **about):
        if not Path(model_id).is_dir():
            where = {"revision": revision, "cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
            return super()._from_pretrained(model_id=model_id, force_download=force_download, **where, **about)
        return from_file(about, Path(model_id) / "model.safetensors")


def from_file(about, path):
    """Return the network of a `description` with the weights in a file. Raises StoreError naming the file."""
    try:
        model = Pretrained(**about)
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        why = f"its network is not one of this suite ({error})"
        raise StoreError(f"{path}: {why}; publish or train it again") from None
    load_weights(model, path)
    return model.eval()


def network(name, profile="quick"):
    """Return a trained network in evaluation mode, without its data. `name` is a published name, the key of one of the user's
    runs in runs/<profile>, or a folder with config.json and model.safetensors. Raises StoreError if that is missing or
    damaged."""
    check_profile(profile)
    name = str(name)
    if (folder(profile) / name / "config.json").is_file():
        return from_folder(folder(profile) / name)
    weights = Store(profile).folder / f"{name}.safetensors"
    if weights.is_file():
        return from_file(described_in(weights), weights)
    if (Path(name).expanduser() / "config.json").is_file():
        return from_folder(Path(name).expanduser())
    names = published(profile)
    what = f"network: {name!r} is neither published in profile {profile!r} nor the key of a run of it nor a folder of a network"
    raise StoreError(f"{what}; did you mean {nearest(name, names)!r}? There are {', '.join(names)}")


def from_folder(path):
    """Return the network in a folder with config.json and model.safetensors. Raises StoreError naming the file."""
    about = read_json(path / "config.json")
    if not isinstance(about, dict):
        raise StoreError(f"{path / 'config.json'}: not a description of a network; publish the network again")
    return from_file(about, path / "model.safetensors")


def described_in(path):
    """Return the `description` in the metadata of a file of weights. Raises StoreError."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["about"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: does not say of which network it is ({type(error).__name__}); train the run again") from None


def description(model, key, profile):
    """Return what is needed besides the weights to build a network without its data, as values that JSON can represent."""
    cfg, palette = model.cfg, model.palette
    more = {"palette": palette.colours.tolist()} if palette else {}
    more |= {"classes": model.head.out_features} if cfg.pretext == "supervised" else {}
    return {**key_fields(cfg), "mean": model.mean.tolist(), "std": model.std.tolist(), **more, "key": key, "profile": profile}


def load_weights(model, path):
    """Load the weights in a file into a network. Raises StoreError naming the file."""
    try:
        model.load_state_dict(load_tensors(path.read_bytes()))
    except OSError as error:
        raise StoreError(f"{path}: weights cannot be read ({error.strerror}); train the run again to have them") from None
    except SafetensorError as error:
        raise StoreError(f"{path}: not readable as safetensors ({error}); train the run again") from None
    except RuntimeError:
        raise StoreError(f"{path}: holds the weights of another network; train the run again") from None


def folder(profile):
    """Return the folder of the published networks of a profile, which holds one folder per network."""
    return Store(profile, "results").folder / "networks"


def published(profile):
    """Return the names of the published networks of a profile. Raises StoreError if there are none."""
    names = sorted(path.name for path in folder(profile).glob("*") if path.is_dir())
    if not names:
        raise StoreError(f"{folder(profile)}: no published networks; choose another profile or run `biasnb publish` first")
    return names
