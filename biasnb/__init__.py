"""data -> embedding -> isotropic blocks (mixing matrix) -> pretext -> training -> probe -> records -> tables, figures."""

__version__ = "0.1.0"


def load(name, profile="quick"):
    """A trained network: a published one, biasnb.load("conv"), one of your runs by its key, or that of a folder. See
    `networks.pretrained.network`."""
    from .networks.pretrained import network

    return network(name, profile)
