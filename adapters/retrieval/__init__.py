"""Similar images: an index of one vector an image, searched by cosine, and what in two images is alike."""
