"""data -> embedding -> isotropic blocks (mixing matrix) -> pretext -> training -> probe -> records -> tables, figures."""

__version__ = "0.1.0"


def load(name, profile="quick"):
    """A published network with its trained weights, e.g. biasnb.load("conv"), or that of a folder: `pretrained.network`."""
    from .pretrained import network

    return network(name, profile)
