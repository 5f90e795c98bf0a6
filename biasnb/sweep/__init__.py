"""From the factors of a study to trained runs. `study` combines factors and their levels into a list of runs, `manifest` reads
the requested runs from a notebook and checks its parameters, `executor` trains missing runs with Dask, `search` searches
learning rates, and `estimate` predicts time and memory. Imports `training` and the subpackages before it. Notebooks import
`Study` from here."""

from .study import Study, images_of

__all__ = ["Study", "images_of"]
