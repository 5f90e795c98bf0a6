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
        "convmixer": Mixer("convolution (convmixer)", "ConvMixer", ("kernel", "padding"), local=True, shared=True),
        "mixer": Mixer("token MLP (mixer)", "TokenMLP", ("token_ratio",)),
        "igpt": Mixer("attention (igpt)", "Attention", HEADS, shared=True, dynamic=True),
    },
    "cell": {  # the cube local x shared x dynamic
        "conv": Mixer("convolution (conv)", "Static", LOCAL, local=True, shared=True),
        "gconv": Mixer("global convolution (gconv)", "Static", SHARED, shared=True),
        "lc": Mixer("local, not shared (lc)", "Static", LOCAL, local=True),
        "full": Mixer("free matrix (full)", "Static", HEADS),
        "lattn": Mixer("local attention (lattn)", "Attention", LOCAL, local=True, shared=True, dynamic=True, biased=True),
        "gattn": Mixer("relative attention (gattn)", "Attention", SHARED, shared=True, dynamic=True, biased=True),
        "lattn_abs": Mixer("local absolute attention (lattn_abs)", "Attention", LOCAL, local=True, dynamic=True, biased=True),
        "attn": Mixer("absolute attention (attn)", "Attention", HEADS, dynamic=True, biased=True),
    },
    "control": {  # what else could be the cause
        "identity": Mixer("no mixing (identity)", "Identity", local=True, shared=True),
        "mean": Mixer("window mean (mean)", "WindowMean", ("kernel", "padding"), local=True, shared=True),
        "static_softmax": Mixer("static softmax (static_softmax)", "StaticSoftmax", HEADS),
        "static_softmax_shared": Mixer("shared softmax (static_softmax_shared)", "StaticSoftmax", SHARED, shared=True),
        "conv_frozen": Mixer("random convolution (conv_frozen)", "Static", LOCAL, local=True, shared=True, frozen=True),
        "gconv_frozen": Mixer("random global convolution (gconv_frozen)", "Static", SHARED, shared=True, frozen=True),
        "lc_frozen": Mixer("random local, not shared (lc_frozen)", "Static", LOCAL, local=True, frozen=True),
        "full_frozen": Mixer("random free matrix (full_frozen)", "Static", HEADS, frozen=True),
    },
    "between": {  # between the cells
        "lowrank": Mixer("low-rank sharing (lowrank)", "LowRank", (*LOCAL, "rank"), local=True),
        "convit": Mixer("gated attention (convit)", "GatedAttention", SHARED, shared=True, dynamic=True, biased=True),
        "hyena": Mixer("gated global convolution (hyena)", "Hyena", SHARED, shared=True, dynamic=True),
        "hyena_hybrid": Mixer("gated, then attention (hyena_hybrid)", "hyena_hybrid", SHARED, shared=True, dynamic=True),
        "attn_local_heads": Mixer(
            "attention, local heads (attn_local_heads)", "LocalHeads", (*LOCAL, "local_heads"), shared=True, dynamic=True
        ),
    },
    "other": {  # more convolutions
        "conv_dense": Mixer("dense convolution (conv_dense)", "DenseConv", ("kernel", "padding"), local=True, shared=True),
        "conv_two_stream": Mixer("two-stream convolution (conv_two_stream)", "TwoStream", ("kernel",), local=True, shared=True),
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
