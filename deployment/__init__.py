"""Floor 7, chapter 7: serving a model. Not built yet: see README.md here."""
