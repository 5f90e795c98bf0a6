"""From records to verdicts. `claims` defines every claim with its rule and its tests, `contrasts` computes paired differences
of runs, `hypotheses` defines a single test, `stats` provides statistics over seeds, and `verdicts` combines tests into a
verdict. Imports `records`, the configuration and the table of operators, but not torch."""
