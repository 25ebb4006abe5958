"""Similarity search of images: an index of feature vectors, its search, and the matching regions of two images."""
