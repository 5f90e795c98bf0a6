"""Images as uint8 tensors. `datasets` gives the splits of a data set, `downloads` reads those of torchvision, `images` those
in a folder of image files, `embedded` has the two sets that come with the package (crops of photographs, generated dead
leaves), and `palette` fits the colours of image-GPT. Imports `records` and the configuration."""
