"""Images as uint8 tensors: torchvision's data sets, folders of image files, the embedded and generated sets, and
palettes. Imports `records` and the configuration."""
