"""Images as uint8 tensors. `datasets` returns the splits of a data set, `downloads` reads the data sets of torchvision,
`images` reads image files, `embedded` provides the data sets that need no download (crops of photographs, handwritten digits,
generated dead leaves), and `palette` fits the palette of image-GPT. Imports `records` and the configuration."""
