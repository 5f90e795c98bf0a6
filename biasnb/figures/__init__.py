"""From saved records to pictures and tables, in one style. Imports `evidence` and `records`, and no torch."""
