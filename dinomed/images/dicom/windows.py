"""Windows and unit of the values of a gray DICOM image, as its file states them."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_UNSPECIFIED = "US"
_MAX_WINDOWS, _MAX_NAME = 16, 40
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True)
class GrayWindow:
    """A window of gray values.

    Attributes:
        center, width: in the unit of the values.
        function: LINEAR, LINEAR_EXACT or SIGMOID (PS3.3, C.11.2.1.2 and C.11.2.1.3).
        name: explanation in the file, or "".
    """

    center: float
    width: float
    function: str = "LINEAR_EXACT"
    name: str = ""

    def limits(self) -> tuple[float, float]:
        """Return the values that become black and white; LINEAR uses center - 0.5 and width - 1 (C.11.2.1.2.1)."""
        shift = 1 if self.function == "LINEAR" else 0
        center, width = self.center - shift / 2, self.width - shift
        return center - width / 2, center + width / 2


def list_windows(elements: Any) -> list[GrayWindow]:
    """Return the windows of a file, up to the first one without a finite center and a width above 0."""
    centers, widths, names = (
        _listed(elements.get(name)) for name in ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation")
    )
    function = str(elements.get("VOILUTFunction") or "LINEAR")
    function = function if function in _FUNCTIONS else "LINEAR"
    windows = []
    for place, (center, width) in enumerate(zip(centers, widths, strict=False)):
        pair = number_of(center), number_of(width)
        if pair[0] is None or pair[1] is None or not pair[1] > 0:
            break
        name = str(names[place])[:_MAX_NAME].strip() if place < len(names) else ""
        windows.append(GrayWindow(pair[0], pair[1], function, name))
    return windows[:_MAX_WINDOWS]


def unit_of_values(elements: Any) -> str:
    """Return the unit of the values after the modality LUT, such as HU; "" if the file states none.

    It is the Rescale Type (0028,1054). Without one the values of a CT image are in Hounsfield units (PS3.3, C.8.2.1),
    unless it is of several energies.
    """
    stated = str(elements.get("RescaleType") or "").strip()
    if stated:
        return stated if stated != _UNSPECIFIED and re.fullmatch(r"[A-Za-z0-9_/%]{1,16}", stated) else ""
    is_ct = str(elements.get("SOPClassUID", "")) == _CT_IMAGE and elements.get("RescaleSlope") is not None
    return "HU" if is_ct and str(elements.get("MultienergyCTAcquisition") or "NO") == "NO" else ""


def number_of(value: Any) -> float | None:
    """Return `value` or its first element as a number; None if it is missing or not finite."""
    try:
        number = float(value if isinstance(value, str | int | float) else value[0])
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None


def _listed(value: Any) -> list[Any]:
    if value is None or isinstance(value, str | int | float):
        return [] if value is None else [value]
    return list(value)
