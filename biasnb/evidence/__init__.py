"""From records to verdicts. `claims` has every claim with its rule and its tests, `contrasts` the paired differences of runs
that tests are about, `hypotheses` what a single test says, `stats` the statistics over seeds, `verdicts` turns tests into a
verdict. Imports `records`, the configuration and the table of operators, and no torch."""
