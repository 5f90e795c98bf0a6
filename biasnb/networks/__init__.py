"""The isotropic network. `model` is the stack of blocks and its head, `embed` turns pixels into tokens and back, `mixing` has
the operators that mix positions, `positions` what operators are made of, and `pretrained` loads trained networks without
their data. Imports `data`, `records` and the configuration."""
