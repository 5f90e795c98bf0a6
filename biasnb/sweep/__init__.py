"""From the factors of a study to trained runs. `study` turns factors and their levels into a list of runs, `manifest` reads
from a notebook what it asks for and checks its parameters, `executor` trains on Dask what is missing, `search` searches
learning rates, `estimate` predicts time and memory. Imports `training` and the rooms before it. Notebooks import `Study` from
here."""

from .study import Study, images_of

__all__ = ["Study", "images_of"]
