"""Instruction tuning of a pretrained model. Not built yet."""
