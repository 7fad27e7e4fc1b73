"""Floor 5, chapter 5: adapting a trained model to a task."""
