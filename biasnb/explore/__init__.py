"""What a reader tries out by hand. `playground` is the panel of notebook 03, `scene` computes and draws what it shows,
`checks` measures what each operator is (docs/operators.md). Imports `figures`, `training` and the rooms before them."""
