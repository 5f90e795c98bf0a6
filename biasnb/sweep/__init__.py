"""From factors to runs: the list of runs of a study, the executor that trains what is missing, the learning-rate search,
the estimate of time. Imports `training` and below."""
