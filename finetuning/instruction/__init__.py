"""Instruction tuning of a pretrained model: formats, packing, training, preferences and evaluation."""
