"""From factors to runs: the list of runs of a study, the executor that trains what is missing, the learning-rate search, the
estimate of time, and what a notebook asks for. Imports `training` and below."""

from .study import Study, images_of

__all__ = ["Study", "images_of"]
