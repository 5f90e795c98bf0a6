"""The mixing operators by name. To add one: a class in `mixing` and an entry here; everything else follows."""

from typing import NamedTuple


class Mixer(NamedTuple):
    """A mixing operator: its name in figures, its class in `mixing` (or the class itself), the Config fields that only
    some operators read, this one among them, and which constraints its mixing matrix A obeys."""

    label: str
    operator: str | type
    reads: tuple = ()
    local: bool = False  # A_ij = 0 outside a window
    shared: bool = False  # A_ij depends on positions only through p_j - p_i
    dynamic: bool = False  # A is computed from the input
    biased: bool = False  # attention with a table of positions beside its content
    frozen: bool = False  # A is random and never trained
    family: str = "own"  # see FAMILIES; an operator of one's own stands beside each of them


HEADS, LOCAL, SHARED = ("heads",), ("heads", "kernel", "padding"), ("heads", "padding")
FAMILIES = {
    "trio": {  # the presets of Figure 1
        "convmixer": Mixer("ConvMixer (convolution)", "ConvMixer", ("kernel", "padding"), local=True, shared=True),
        "mixer": Mixer("Mixer (token MLP)", "TokenMLP", ("token_ratio",)),
        "igpt": Mixer("iGPT (attention)", "Attention", HEADS, shared=True, dynamic=True),
    },
    "cell": {  # the cube local x shared x dynamic
        "conv": Mixer("conv", "Static", LOCAL, local=True, shared=True),
        "gconv": Mixer("gconv", "Static", SHARED, shared=True),
        "lc": Mixer("lc", "Static", LOCAL, local=True),
        "full": Mixer("full", "Static", HEADS),
        "lattn": Mixer("lattn", "Attention", LOCAL, local=True, shared=True, dynamic=True, biased=True),
        "gattn": Mixer("gattn", "Attention", SHARED, shared=True, dynamic=True, biased=True),
        "lattn_abs": Mixer("lattn_abs", "Attention", LOCAL, local=True, dynamic=True, biased=True),
        "attn": Mixer("attn", "Attention", HEADS, dynamic=True, biased=True),
    },
    "control": {  # what else could be the cause
        "identity": Mixer("identity (no mixing)", "Identity", local=True, shared=True),
        "mean": Mixer("mean of the window", "WindowMean", ("kernel", "padding"), local=True, shared=True),
        "static_softmax": Mixer("static softmax", "StaticSoftmax", HEADS),
        "static_softmax_shared": Mixer("static softmax, shared", "StaticSoftmax", SHARED, shared=True),
        "conv_frozen": Mixer("conv, frozen", "Static", LOCAL, local=True, shared=True, frozen=True),
        "gconv_frozen": Mixer("gconv, frozen", "Static", SHARED, shared=True, frozen=True),
        "lc_frozen": Mixer("lc, frozen", "Static", LOCAL, local=True, frozen=True),
        "full_frozen": Mixer("full, frozen", "Static", HEADS, frozen=True),
    },
    "between": {  # between the cells
        "lowrank": Mixer("low-rank sharing", "LowRank", (*LOCAL, "rank"), local=True),
        "convit": Mixer("ConViT (gated attention)", "GatedAttention", SHARED, shared=True, dynamic=True, biased=True),
        "hyena": Mixer("Hyena (gated gconv)", "Hyena", SHARED, shared=True, dynamic=True),
        "hyena_hybrid": Mixer("Hyena, then attention", "hyena_hybrid", SHARED, shared=True, dynamic=True),
        "attn_local_heads": Mixer("attention, local heads", "LocalHeads", (*LOCAL, "local_heads"), shared=True, dynamic=True),
    },
    "other": {  # more convolutions
        "conv_dense": Mixer("dense convolution", "DenseConv", ("kernel", "padding"), local=True, shared=True),
        "conv_two_stream": Mixer("conv, two streams", "TwoStream", ("kernel",), local=True, shared=True),
    },
}
MIXERS = {name: op._replace(family=kin) for kin, ops in FAMILIES.items() for name, op in ops.items()}
CUBE = tuple(name for name, op in MIXERS.items() if op.family == "cell")
TRIO = tuple(name for name, op in MIXERS.items() if op.family == "trio")


def family(*names):
    """Operators of these families in their order, and whatever has been added to MIXERS."""
    return tuple(name for name, op in MIXERS.items() if op.family in (*names, "own"))
