"""Augmentation limits of imaging modalities: flips and colour changes that do not turn a finding into another one.

The presets of pretraining (`dinomed.pretrain.data.crops`) and of heads (`dinomed.adapters.fitting.augment`) use this
table.
"""

from typing import NamedTuple


class Modality(NamedTuple):
    """Probabilities of flips, and the largest relative change of brightness, contrast, saturation and hue."""

    horizontal_flip: float
    vertical_flip: float
    jitter: tuple[float, float, float, float]


MODALITIES = {
    # any orientation; hue and saturation distinguish lesions
    "dermoscopy": Modality(0.5, 0.5, (0.2, 0.2, 0.1, 0.02)),
    # any orientation; light and white balance vary, but red and brown have different meanings
    "endoscopy": Modality(0.5, 0.5, (0.3, 0.3, 0.15, 0.03)),
    # the heart is on the left, the diaphragm below; no colour
    "xray": Modality(0.0, 0.0, (0.2, 0.2, 0.0, 0.0)),
    # depth points down: shadows and enhancement lie below their cause; no colour
    "ultrasound": Modality(0.5, 0.0, (0.2, 0.2, 0.0, 0.0)),
    # a horizontally mirrored image shows the other eye; the vascular arcades are above and below
    "fundus": Modality(0.5, 0.0, (0.2, 0.2, 0.1, 0.02)),
}
