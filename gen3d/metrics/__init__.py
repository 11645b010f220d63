"""How good is it? Numbers for images, texts and shapes."""
