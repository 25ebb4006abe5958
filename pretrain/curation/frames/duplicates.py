"""Near-duplicates among the frames of a video, by the hash and the descriptor of the curation.

A frame is a near-duplicate of a kept frame if at most some bits of their perceptual hashes differ, or if the cosine of
their composed descriptors (`descriptors.handcrafted`) is above the threshold of the curation. The hash finds a camera
that stands still, the descriptor also one that moves or turns a little. Keypoints, by which the curation checks pairs
of a lower cosine, are not compared: a check takes the time in which ten frames are decoded.

As in the curation, the descriptor is fitted to the images themselves (`descriptors.projection`): to evenly spaced
frames of the video and synthetic copies of them. This happens when a second frame is about to be kept. Fitted to few
frames it calls frames of different places near-duplicates, so that a video with fewer than `MIN_FIT_FRAMES` is compared
by hash.
"""

from collections.abc import Callable, Iterator

import cv2
import numpy as np

from dinomed.images.decode import UnreadableImage
from dinomed.pretrain.curation.deduplication.hashes import phash_views
from dinomed.pretrain.curation.descriptors.config import DescriptorConfig
from dinomed.pretrain.curation.descriptors.handcrafted import compose
from dinomed.pretrain.curation.descriptors.projection import Projection, fit_invariance
from dinomed.pretrain.curation.descriptors.synthetic_copies import add_copies
from dinomed.video.video import Video

FIT_FRAMES = 32
"""Frames to which a descriptor is fitted, of a video of so many or more."""
MIN_FIT_FRAMES = 16
MEMORY = 1024
"""Number of the last kept frames whose descriptors are compared, 2 MB; hashes are compared with all kept frames."""
_SIDE = 160  # px of the short side at which frames are described; the descriptor itself reduces them to 128 px


class NearDuplicates:
    """The kept frames of a video.

    Args:
        bits: largest number of differing bits of near-duplicates, of 256.
        cosine: of the descriptors, above which frames are near-duplicates; 1 to compare hashes only.
        fit: returns the projection of the descriptor, None if the video has too few frames for it. It is called once,
            when it is needed.
    """

    def __init__(self, bits: int, cosine: float, fit: Callable[[], Projection | None]) -> None:
        self._bits, self._cosine, self._fit = bits, cosine, fit if cosine < 1 else lambda: None
        self._numbers: list[int] = []
        self._hashes = np.empty((64, 4), np.uint64)
        self._projection: Projection | None = None
        self._vectors = np.empty((0, 0), np.float32)  # of the last `MEMORY` kept frames, at their place modulo it
        self._first: np.ndarray | None = None  # the first kept frame, until the descriptor is fitted

    def find(self, pixels: np.ndarray, number: int) -> int | None:
        """Return the number of a kept frame of which this is a near-duplicate; else None, and it counts as kept."""
        code, count, vector = phash_views(pixels)[0], len(self._numbers), None
        if count:
            differing = np.unpackbits((self._hashes[:count] ^ code).view(np.uint8), axis=1).sum(axis=1)
            nearest = int(differing.argmin())
            if differing[nearest] <= self._bits:
                return self._numbers[nearest]
            if count == 1 and self._first is not None:
                self._begin(self._first)
            if self._projection is not None:
                vector = self._describe(pixels)
                cosines = self._vectors[: min(count, MEMORY)] @ vector
                nearest = int(cosines.argmax())
                if cosines[nearest] > np.float32(self._cosine):
                    return self._numbers[nearest + (count - 1 - nearest) // MEMORY * MEMORY]
        else:
            self._first = shrink(pixels)
        self._keep(number, code, vector)
        return None

    def _begin(self, first: np.ndarray) -> None:
        """Fit the descriptor, and describe the first kept frame."""
        self._first, self._projection = None, self._fit()
        if self._projection is not None:
            self._vectors = np.empty((MEMORY, self._projection.dimension), np.float32)
            self._vectors[0] = self._describe(first)

    def _describe(self, pixels: np.ndarray) -> np.ndarray:
        assert self._projection is not None
        return self._projection(compose(shrink(pixels))[None])[0]

    def _keep(self, number: int, code: np.ndarray, vector: np.ndarray | None) -> None:
        count = len(self._numbers)
        if count == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
        self._hashes[count] = code
        if vector is not None:
            self._vectors[count % MEMORY] = vector
        self._numbers.append(number)


def fit_frames(video: Video, is_usable: Callable[[np.ndarray], bool]) -> Projection | None:
    """Fit the descriptor of the curation to evenly spaced frames of a video, and to synthetic copies of them.

    Args:
        video: the video. With an index `FIT_FRAMES` frames of it are read, which decodes a file that cannot seek up to
            the last of them; without an index all of its frames are decoded.
        is_usable: whether a frame, uint8 RGB ``(H, W, 3)``, is neither black nor blurred nor outside of the body. It is
            called with frames of the size of the video.

    Returns:
        The projection; None if fewer than `MIN_FIT_FRAMES` of these frames are usable.
    """
    config = DescriptorConfig()
    usable = [frame for frame in _spaced_frames(video, is_usable) if frame is not None]
    if len(usable) < MIN_FIT_FRAMES:
        return None
    rows = [np.stack([compose(image) for image in add_copies(frame, config.seed, index)])
            for index, frame in enumerate(usable)]  # fmt: skip
    raw = np.stack(rows)
    return fit_invariance(raw[:, 0], raw[:, 1:], config.dimension)


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Return a frame, uint8 RGB ``(H, W, 3)``, with a short side of at most 160 px."""
    scale = _SIDE / min(pixels.shape[:2])
    if scale >= 1:
        return pixels
    size = [max(1, round(side * scale)) for side in pixels.shape[1::-1]]
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def _spaced_frames(video: Video, is_usable: Callable[[np.ndarray], bool]) -> list[np.ndarray | None]:
    """Return at most `FIT_FRAMES` evenly spaced frames that can be decoded, as of `shrink`; None for one that is not
    usable.

    A frame is judged before it is reduced, since a blurred frame is sharper in a smaller size. One frame in its full
    size is in memory at a time.
    """
    count = video.facts.frames
    if count is None or not video.facts.indexed:
        return _spaced_while_decoding(video, is_usable)
    frames = list[np.ndarray | None]()
    for number in sorted({int((place + 0.5) * count / FIT_FRAMES) for place in range(FIT_FRAMES)}):
        try:
            pixels = video.read(number).pixels
        except UnreadableImage:
            continue
        frames.append(shrink(pixels) if is_usable(pixels) else None)
    return frames


def _spaced_while_decoding(video: Video, is_usable: Callable[[np.ndarray], bool]) -> list[np.ndarray | None]:
    """Decode a video whose number of frames is not known; every second of the frames is left out where there are too
    many."""
    frames, step = list[np.ndarray | None](), 1
    for index, pixels in enumerate(_readable(Video(video.path))):
        if index % step == 0:
            frames.append(shrink(pixels) if is_usable(pixels) else None)
        if len(frames) > 2 * FIT_FRAMES:
            frames, step = frames[::2], 2 * step
    return frames[:: max(1, -(-len(frames) // FIT_FRAMES))]


def _readable(video: Video) -> Iterator[np.ndarray]:
    try:
        for frame in video.stream():
            yield frame.pixels
    except UnreadableImage:
        return
