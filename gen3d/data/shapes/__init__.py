"""The shapes world: captioned objects whose geometry is known."""
