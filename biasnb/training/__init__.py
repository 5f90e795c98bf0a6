"""One run from Config to record, or the runs of several seeds as one program: training tasks, the loop, checkpoints, evaluation
and measures. Knows no signals: a process that is killed leaves a state, and the next call goes on from it. Imports `networks`
and below."""
