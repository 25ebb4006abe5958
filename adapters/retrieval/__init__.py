"""Similarity search of images: an index of feature vectors, its search, and the matching patches of two images."""
