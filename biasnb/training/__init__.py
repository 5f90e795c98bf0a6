"""From a Config to the record of its run. `run` prepares, trains, evaluates and saves it. `pretext` defines the training tasks,
`loop` is the training loop, `seeds` trains networks that differ only in the seed as one program, `checkpoint` writes
checkpoints, `evaluation` computes baselines and probes, and `measures` computes the measures of a trained network. Imports
`networks`, `data`, `records` and the configuration."""
