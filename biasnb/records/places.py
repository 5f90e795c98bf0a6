"""Locations of folders. Output goes to the checkout, or to the working directory if the package is installed."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "notebooks").is_dir() else None  # None: the package is installed


def root():
    """Return the folder of runs/ and data/: BIASNB_ROOT if it is set, else the checkout, else the working directory."""
    return Path(os.environ.get("BIASNB_ROOT") or CHECKOUT or Path.cwd()).resolve()


def notebooks():
    """Return the folder of the notebooks: the one in `root()` if it exists, else the one distributed with the package."""
    found = root() / "notebooks"
    return found if found.is_dir() else (CHECKOUT or PACKAGE) / "notebooks"


def results():
    """Return the folder of the committed records: the one in `root()`, else the one inside the installed package."""
    found = root() / "results"
    return found if found.is_dir() or CHECKOUT or os.environ.get("BIASNB_ROOT") else PACKAGE / "results"
