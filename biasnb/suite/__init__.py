"""What a user starts. `commands` is the command line, `notebooks` the strict Papermill runner, `reproduce` trains and runs
everything, `status` tells how all runs stand, `publish` makes runs the committed reference and compares with it, `report`
writes the executed notebooks as HTML, `sheet` fills REPRODUCIBILITY.md. Imports every other room."""
