"""What a run leaves behind, and how it is found again. `keys` gives a run its name, `store` reads and writes its record,
`sweep` is the list of runs that one notebook asked for, `files` writes atomically and holds locks, `places` says where the
folders are, `provenance` stamps a record with machine and versions, `progress` shows how far something is. Imports the
configuration and the table of operators only, and no torch: tables, figures and claims are made from this room alone."""
