"""The isotropic network. `model` defines the stack of blocks and the head, `embed` maps pixels to tokens and back, `mixing`
defines the operators that mix positions, `positions` provides their components, and `pretrained` loads trained networks
without their data. Imports `data`, `records` and the configuration."""
