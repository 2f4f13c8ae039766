"""What weights alone say: QK and OV circuits, composition, direct logit attribution, convolutions."""
