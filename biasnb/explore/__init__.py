"""Interactive exploration. `playground` is the panel of notebook 03, `scene` computes and draws its content, and `checks`
measures the biases of each operator (docs/operators.md). Imports `figures`, `training` and the subpackages before them."""
