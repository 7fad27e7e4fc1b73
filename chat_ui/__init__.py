"""Floor 6, chapter 6: talking to a model."""
