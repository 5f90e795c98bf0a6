"""The isotropic stack: embedding, positions, the mixing operators, blocks, head, and what a network costs. Imports
`data` and below."""
