"""dinomed: self-supervised ViT backbones and light heads for medical images.

For research use only, not for diagnosis.
"""

__version__ = "0.1.0"
