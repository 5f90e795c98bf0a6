"""From a Config to the record of its run. `run` is the whole of it: prepare, train, evaluate, save. `pretext` has the
training tasks, `loop` is the training loop, `seeds` trains networks that differ in their seed as one program, `checkpoint`
writes the states to resume from, `evaluation` has baselines and probes, `measures` what is measured on a trained network.
Imports `networks`, `data`, `records` and the configuration."""
