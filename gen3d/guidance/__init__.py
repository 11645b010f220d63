"""What judges an image against a text."""
