"""Where images, captions and cameras come from."""
