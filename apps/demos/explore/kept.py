"""Patch tokens of pictures of current visits, for the comparison with a later picture."""

import uuid
from collections import OrderedDict
from threading import Lock

import numpy as np

MAX_BYTES = 256 * 2**20  # of all visitors


class KeptTokens:
    """Patch tokens under random keys, which only their visitors know.

    At most `max_bytes` are kept in total; those that were not used for the longest time are removed first.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = Lock()

    def put(self, tokens: np.ndarray) -> str:
        """Keep tokens, (rows, columns, C), in half precision, and return their key."""
        key = uuid.uuid4().hex
        with self._lock:
            self._kept[key] = tokens.astype(np.float16)
            while len(self._kept) > 1 and sum(each.nbytes for each in self._kept.values()) > self.max_bytes:
                self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> np.ndarray | None:
        """Return the tokens of a key in float32, or None if they were removed."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key].astype(np.float32)
