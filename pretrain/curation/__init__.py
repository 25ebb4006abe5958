"""Curation: from a pool of raw images to a clean, leak-free, balanced collection."""
