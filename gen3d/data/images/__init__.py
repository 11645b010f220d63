"""Image collections for GANs, with or without cameras."""
