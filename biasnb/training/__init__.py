"""One run from Config to record: pretexts, the loop, several seeds as one program, checkpoints, probe, measures. Imports
`networks` and below."""
