"""Floor 1: what every chapter needs and none of them teaches (devices, seeds, files, downloads, plots)."""
