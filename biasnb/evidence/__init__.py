"""From saved records to verdicts: statistics, paired contrasts, and the claims with their tests. Imports `records` and
the configuration, and no torch."""
