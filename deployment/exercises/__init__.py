"""Checks of the chapter's exercises: `exNN.py` belongs to notebook NN. A check says what probably went wrong."""
