"""Records of runs. `keys` computes the key of a run, `store` reads and writes its record, `sweep` lists the runs that a
notebook requests, `files` provides atomic writes and locks, `places` locates the folders, `provenance` describes the machine
and the package versions, and `progress` reports progress. Imports only the configuration and the table of operators. It does
not import torch, so tables, figures and claims can be made from records without it."""
