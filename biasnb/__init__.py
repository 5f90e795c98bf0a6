"""Small vision networks that differ in their inductive biases: trained, recorded, compared. Notebooks hold the experiments.

The rooms of the package in reading order; each imports only from those before it, which `make lint` checks:

    operators.py  the mixing operators by name
    config.py     the settings of a run and their checks; profiles.toml: the sizes of a profile, as data
    records       what a run leaves behind: keys, records, sweeps, atomic files, locks
    data          images as tensors: data sets, image files, palettes
    networks      the isotropic network: embedding, mixing operators, blocks, head
    training      from a Config to the record of its run: pretext, loop, checkpoints, probe, measures
    evidence      from records to verdicts: statistics, paired contrasts, claims (no torch)
    figures       from records to pictures and tables (no torch)
    sweep         from the factors of a study to trained runs: Study, notebooks' parameters, Dask, estimates
    explore       what a reader tries out by hand: the playground, the checks of operators
    suite         what a user starts: the command line, the notebook runner, reproduce, status, publish, report
"""

__version__ = "0.1.0"


def load(name, profile="quick"):
    """A trained network: a published one, biasnb.load("conv"), one of your runs by its key, or that of a folder. See
    `networks.pretrained.network`."""
    from .networks.pretrained import network

    return network(name, profile)
