"""Classification with a pretrained model. Not built yet."""
