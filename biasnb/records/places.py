"""Where files are: what is written goes to the checkout, or to the working directory of an installed package."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "notebooks").is_dir() else None  # None: the package is installed


def root():
    """The folder of runs/ and data/: BIASNB_ROOT, else the checkout, else the working directory."""
    return Path(os.environ.get("BIASNB_ROOT") or CHECKOUT or Path.cwd()).resolve()


def notebooks():
    """The folder of the notebooks: that of `root`, else the one that came with the package."""
    found = root() / "notebooks"
    return found if found.is_dir() else (CHECKOUT or PACKAGE) / "notebooks"


def results():
    """The folder of the committed records: that of `root`, else, of an installed package, the one that came with it."""
    found = root() / "results"
    return found if found.is_dir() or CHECKOUT or os.environ.get("BIASNB_ROOT") else PACKAGE / "results"
