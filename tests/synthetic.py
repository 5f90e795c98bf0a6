"""Records of runs that were never trained, to test what is made from records."""

import numpy as np

from biasnb.config import configure, floor_key, key, relevant
from biasnb.store import Grid

# Put before a script: torch cannot be found.
NO_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoTorch())
"""

DATA = {"name": "photographs", "fingerprint": "f" * 16, "classes": ["a", "b"], "train": 40, "val": 5, "test": 10}


def probe(depth, best):
    rows = [{"layer": i, "penalty": 0.01, "train": best, "val": best - i / 100, "test": best - i / 100, "knn": best}
            for i in range(depth + 1)]  # fmt: skip
    return {"layers": rows, "chosen": rows[0]}


def run_record(mixer, depth, seed, psnr=22.0, accuracy=0.6, status="done"):
    cfg = configure("smoke", mixer=mixer, depth=depth, seed=seed)
    record = {
        "kind": "run", "key": key(cfg), "config": relevant(cfg), "status": status, "steps": 4, "data": DATA,
        "environment": {}, "palette": None,
        "history": [{"step": s, "loss": 1.0 / s, "lr": 0.1, "gradient_norm": 1.0} for s in range(1, 5)],
    }  # fmt: skip
    if status == "done":
        record |= {
            "parameters": {"mixing": 10, "channel": 20, "embedding": 30}, "flop_per_image": 12345,
            "images_per_second": 100.0, "wall_seconds": 1.0, "loss": {"val": 0.2, "test": 0.2},
            "psnr": {"val": psnr, "test": psnr}, "probe": probe(depth, accuracy), "init_probe": probe(depth, 0.5),
        }  # fmt: skip
    return record


def grid(store, mixers=("convmixer", "mixer", "igpt"), depths=(1, 2), seeds=3, experiment="20_trio"):
    """A grid with all its records: PSNR falls with the mixer's place and differs a little by seed."""
    rng = np.random.default_rng(0)
    runs = []
    for seed in range(seeds):
        for depth in depths:
            for i, mixer in enumerate(mixers):
                record = run_record(mixer, depth, seed, psnr=24.0 - 2 * i + 0.1 * float(rng.normal()))
                pictures = rng.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
                mask = rng.random((10, 4, 4)) < 0.5
                store.save(record, {"images": pictures, "mask": mask, "reconstruction": pictures})
                runs.append({"key": record["key"], **record["config"]})
    cfg = configure("smoke")
    floor = {
        "kind": "floor", "key": floor_key(cfg), "config": {}, "data": DATA, "environment": {}, "chance": 0.1,
        "psnr": {"image_mean": 17.0, "neighbour_mean": 21.7, "nearest_visible": 21.2},
        "pixel_probe": {"layer": 0, "penalty": 0.1, "train": 0.6, "val": 0.5, "test": 0.42},
    }  # fmt: skip
    store.save(floor)
    content = {"experiment": experiment, "profile": "smoke", "data": "photographs", "overrides": {}, "runs": runs,
               "floor": floor["key"]}  # fmt: skip
    return Grid(store, experiment, content)
