"""The isotropic stack: embedding, positions, the mixing operators, blocks, head, what a network costs, and trained networks
without their data. Imports `data` and below."""
