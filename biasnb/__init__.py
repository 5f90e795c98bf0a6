"""data -> embedding -> isotropic blocks (mixing matrix) -> pretext -> training -> probe -> records -> tables, figures."""

__version__ = "0.1.0"
