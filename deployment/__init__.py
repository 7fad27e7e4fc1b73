"""Floor 7, chapter 7: serving a model."""
