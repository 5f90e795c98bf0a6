"""Images as uint8 tensors. `datasets` gives the splits of a data set, `downloads` reads those of torchvision, `images` those
in a folder of image files, `embedded` has the sets that need no download (crops of photographs, handwritten digits, generated
dead leaves), and `palette` fits the colours of image-GPT. Imports `records` and the configuration."""
