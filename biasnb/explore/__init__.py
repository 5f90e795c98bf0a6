"""What is tried out by hand: the playground, and the checks that measure what each operator is. Imports `training`,
`figures` and below."""
