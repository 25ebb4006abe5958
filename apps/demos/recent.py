"""Probability maps of current visits, so that a mask of full size is made without running the model again.

The number of pixels is bounded; the maps that were not used for the longest time are removed first.
"""

import uuid
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

import numpy as np


@dataclass(frozen=True)
class VisitedPicture:
    """The probability map of a picture, float32 (H, W); pixels outside the field of view have 0."""

    probability: np.ndarray


class Recent:
    """Maps by random keys: at most `max_pixels` in total, and always the newest one."""

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self._kept: OrderedDict[str, VisitedPicture] = OrderedDict()
        self._lock = Lock()

    def put(self, visited: VisitedPicture) -> str:
        """Keep a map, and return its key, which only its visitor knows."""
        key = uuid.uuid4().hex
        with self._lock:
            self._kept[key] = visited
            while len(self._kept) > 1 and sum(each.probability.size for each in self._kept.values()) > self.max_pixels:
                self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> VisitedPicture | None:
        """Return the map of a key, or None if it was removed."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)
