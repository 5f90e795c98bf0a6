"""From saved records to verdicts: `claims` with their tests beside them, the paired `contrasts` of runs that tests are about,
their `verdicts`, and the `stats` behind them. Imports `records`, the configuration and the table of operators, and no torch."""
