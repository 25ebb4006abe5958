"""From a raw pool of images to a balanced, clean, leak-free collection: stage functions over vectors and manifests."""
