"""Estimate of skin tone in dermoscopic images: the individual typology angle of the skin around a lesion.

The angle is arctan((L* - 50) / b*) in degrees, from the CIELAB colour of skin (Chardon et al. 1991). The categories are
those of Del Bino and Bernerd 2013. Kinyanjui et al. 2020 ("Fairness of classifiers across skin tones in dermatology")
estimated it from the skin around lesions in the same kind of images.

Limits: it is a property of the picture, not of the person. The angle was defined for a calibrated instrument; here it
depends on the illumination, white balance, gel and polarisation of the dermatoscope, on the processing of the camera,
and on hair, tan, erythema, sun damage and the body site. Images of the same lesion may differ by a category or more. It
is no Fitzpatrick type, and no ethnic origin. Use it to find groups of images that deserve a look, not to prove that a
model is fair, and do not use it for a decision about a person.
"""

import numpy as np

MARGIN = 0.05
"""Width of the band around the lesion that is left out, as a share of the diagonal of the image."""
MIN_SHARE = 0.05
"""Smallest share of the image that must be skin."""
DARK, BRIGHT = 25.0, 97.0
"""Lightness L* below which a pixel is taken for hair, a ruler or a black border, and above which for a reflection.

Dark skin with an angle of -60 degrees and b* of 10 has L* 33."""
CATEGORIES = ((55.0, "very light"), (41.0, "light"), (28.0, "intermediate"), (10.0, "tan"), (-30.0, "brown"))
DARKEST = "dark"


def typology_angle(image: np.ndarray, lesion: np.ndarray) -> float | None:
    """Compute the individual typology angle of the skin around a lesion, degrees.

    It is the angle of the median L* and the median b* over the pixels outside of the lesion and of a band around it,
    without dark and bright ones. Read the limits in the docstring of the module.

    Args:
        image: uint8 (H, W, 3), sRGB.
        lesion: bool (H, W).

    Returns:
        The angle, -90 to 90, or None if less than 5% of the image is skin, or the colour has no yellow (b* <= 0), as no
        skin has.
    """
    import cv2

    assert image.shape[:2] == lesion.shape, (image.shape, lesion.shape)
    near = np.zeros(lesion.shape, bool)
    if lesion.any():
        distance = cv2.distanceTransform((~lesion).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        near = distance <= MARGIN * float(np.hypot(*lesion.shape))
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)  # D65, L* 0 to 100
    lightness, yellow = lab[..., 0], lab[..., 2]
    skin = ~near & (lightness > DARK) & (lightness < BRIGHT)
    if skin.mean() < MIN_SHARE:
        return None
    median, b = float(np.median(lightness[skin])), float(np.median(yellow[skin]))
    return float(np.degrees(np.arctan2(median - 50, b))) if b > 0 else None


def tone_category(angle: float) -> str:
    """Return the category of an individual typology angle, degrees (Del Bino and Bernerd 2013).

    >>> [tone_category(angle) for angle in (60, 50, 30, 20, 0, -40)]
    ['very light', 'light', 'intermediate', 'tan', 'brown', 'dark']
    """
    return next((name for lowest, name in CATEGORIES if angle > lowest), DARKEST)
