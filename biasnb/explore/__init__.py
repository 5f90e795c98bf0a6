"""What a reader tries out by hand: the `playground` and the `scene` that it shows, and the `checks` that measure what each
operator is. Imports `training`, `figures` and the rooms below them."""
