"""The commands of the suite. `commands` is the command line, `notebooks` the strict Papermill runner, `reproduce` trains and
runs everything, `status` lists the state of all runs, `publish` copies records to the committed reference and compares with it,
`report` writes the executed notebooks as HTML, and `sheet` fills REPRODUCIBILITY.md. Imports every other subpackage."""
