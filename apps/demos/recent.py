"""Pictures of current visits with their probability maps, so that a threshold moves without running the model again.

The number of pixels is bounded; the pictures that were not used for the longest time are removed first.
"""

import shutil
import uuid
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np

KEPT_DRAWINGS = 3  # for each picture; a browser may still load the previous one


@dataclass
class VisitedPicture:
    """A picture, uint8 (H, W, 3), its probability map, float32 (H, W), and its number in the visit."""

    number: int
    image: np.ndarray
    probability: np.ndarray
    drawings: deque[Path] = field(default_factory=deque)

    def new_drawing(self, cache: Path) -> Path:
        """Return a new folder in `cache`; the oldest folder of this picture is removed."""
        while len(self.drawings) >= KEPT_DRAWINGS:
            shutil.rmtree(self.drawings.popleft(), ignore_errors=True)
        folder = cache / uuid.uuid4().hex
        folder.mkdir(parents=True)
        self.drawings.append(folder)
        return folder


class Recent:
    """Visited pictures by random keys: at most `max_pixels` in total, and always the newest one."""

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self._kept: OrderedDict[str, VisitedPicture] = OrderedDict()
        self._lock = Lock()

    def put(self, seen: VisitedPicture) -> str:
        key = uuid.uuid4().hex
        with self._lock:
            self._kept[key] = seen
            while len(self._kept) > 1 and sum(one.probability.size for one in self._kept.values()) > self.max_pixels:
                self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> VisitedPicture | None:
        """Return the picture of a key, or None if it was removed."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def drop(self, key: str | None) -> None:
        with self._lock:
            if key is not None:
                self._kept.pop(key, None)
