"""Training, recording and comparison of small vision networks with different inductive biases. Notebooks hold the experiments.

The subpackages in reading order; each imports only from those before it, which `make lint` checks:

    operators.py  the mixing operators by name
    config.py     the settings of a run and their checks; profiles.toml: the settings of each profile, as data
    records       keys and records of runs, sweeps, atomic files, locks
    data          images as tensors: data sets, image files, palettes
    networks      the isotropic network: embedding, mixing operators, blocks, head
    training      from a Config to the record of its run: pretext, loop, checkpoints, probe, measures
    evidence      from records to verdicts on claims: statistics, paired contrasts (no torch)
    figures       from records to figures and tables (no torch)
    sweep         from the factors of a study to trained runs: Study, parameters of notebooks, Dask, estimates
    explore       interactive tools: the playground, the checks of operators
    suite         the command line, the notebook runner, reproduce, status, publish, report
"""

__version__ = "0.1.0"


def load(name, profile="quick"):
    """Return a trained network by the name of its operator (a published one, biasnb.load("conv")), by the key of one of the
    user's runs, or from a folder. See `networks.pretrained.network`."""
    from .networks.pretrained import network

    return network(name, profile)
