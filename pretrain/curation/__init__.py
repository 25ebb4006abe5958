"""From a raw pile of images to a balanced, clean, leak-free collection: stage functions over vectors and manifests."""
