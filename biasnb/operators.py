"""The table of mixing operators. A new operator needs a class in `networks/mixing.py` and an entry here, nothing else."""

from typing import NamedTuple

USER = "user"  # family of the user-defined operators


class Mixer(NamedTuple):
    """A mixing operator: its name in figures, its class in `networks/mixing.py` (or the class itself), the operator-specific
    Config fields that it reads, and the constraints that its mixing matrix A obeys.

    Run keys of a user-defined operator depend on its code, so that an edited operator is trained again. If `version` is set,
    keys depend on it instead of the code, and the user must change it after every edit of the operator."""

    label: str
    operator: str | type
    reads: tuple = ()
    local: bool = False  # A_ij = 0 outside a window
    shared: bool = False  # A_ij depends on positions only through p_j - p_i
    dynamic: bool = False  # A is computed from the input
    biased: bool = False  # attention with a position bias in addition to content
    frozen: bool = False  # A is random and not trained
    family: str = USER  # see FAMILIES; user-defined operators are shown with every family
    version: str = ""  # of a user-defined operator; replaces its code in the run key


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
    "control": {  # controls for alternative explanations
        "identity": Mixer("no mixing (identity)", "Identity", local=True, shared=True),
        "mean": Mixer("window mean (mean)", "WindowMean", ("kernel", "padding"), local=True, shared=True),
        "static_softmax": Mixer("static softmax (static_softmax)", "StaticSoftmax", HEADS),
        "static_softmax_shared": Mixer("shared softmax (static_softmax_shared)", "StaticSoftmax", SHARED, shared=True),
        "conv_frozen": Mixer("random convolution (conv_frozen)", "Static", LOCAL, local=True, shared=True, frozen=True),
        "gconv_frozen": Mixer("random global convolution (gconv_frozen)", "Static", SHARED, shared=True, frozen=True),
        "lc_frozen": Mixer("random local, not shared (lc_frozen)", "Static", LOCAL, local=True, frozen=True),
        "full_frozen": Mixer("random free matrix (full_frozen)", "Static", HEADS, frozen=True),
    },
    "between": {  # intermediate between corners of the cube
        "lowrank": Mixer("low-rank sharing (lowrank)", "LowRank", (*LOCAL, "rank"), local=True),
        "convit": Mixer("gated attention (convit)", "GatedAttention", SHARED, shared=True, dynamic=True, biased=True),
        "hyena": Mixer("gated global convolution (hyena)", "Hyena", SHARED, shared=True, dynamic=True),
        "hyena_hybrid": Mixer("gated, then attention (hyena_hybrid)", "hyena_hybrid", SHARED, shared=True, dynamic=True),
        "attn_local_heads": Mixer(
            "attention, local heads (attn_local_heads)", "LocalHeads", (*LOCAL, "local_heads"), shared=True, dynamic=True
        ),
    },
    "other": {  # further convolutions
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
    """Return the operators of these families in table order, together with the user-defined ones."""
    return tuple(name for name, op in MIXERS.items() if op.family in (*names, USER))
