"""The mixing operators by name. To add one: a class in `mixing` and an entry here; everything else follows."""

from typing import NamedTuple

USER = "user"  # the family of operators that are not the suite's


class Mixer(NamedTuple):
    """A mixing operator: its name in figures, its class in `mixing` (or the class itself), the Config fields that only
    some operators read, this one among them, and which constraints its mixing matrix A obeys.

    The keys of the runs of a user-defined operator follow its code, so that an edited operator is trained again. Where its
    `version` is set it takes the place of the code, and whoever edits the operator changes the version."""

    label: str
    operator: str | type
    reads: tuple = ()
    local: bool = False  # A_ij = 0 outside a window
    shared: bool = False  # A_ij depends on positions only through p_j - p_i
    dynamic: bool = False  # A is computed from the input
    biased: bool = False  # attention with a table of positions beside its content
    frozen: bool = False  # A is random and never trained
    family: str = USER  # see FAMILIES; a user-defined operator stands beside each of them
    version: str = ""  # of a user-defined operator: says which code it is, where its code is not to be compared


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
MIXERS = {}
for _family, _members in FAMILIES.items():
    MIXERS |= {name: op._replace(family=_family) for name, op in _members.items()}
CUBE = tuple(FAMILIES["cell"])
TRIO = tuple(FAMILIES["trio"])


def family(*names):
    """Operators of these families in their order, and whatever has been added to MIXERS."""
    return tuple(name for name, op in MIXERS.items() if op.family in (*names, USER))
