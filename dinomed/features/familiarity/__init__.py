"""Check whether images are unlike the training images: distances, their reference, and its fit."""
