"""The interface of a video that is decoded in this process."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from dinomed.video.facts import VideoFacts, VideoFrame


class DecodingPaused(Exception):
    """A frame was not reached within the allowed time; the same call continues from there."""


class FrameSource(ABC):
    """A video whose frames are decoded one after the other, or from a place in the file.

    Attributes:
        facts: the facts of the video; `facts.frames` and `facts.problem` may become known only at the end.
    """

    facts: VideoFacts

    @abstractmethod
    def advance(self, target: int, pause: Callable[[], bool] = lambda: False) -> VideoFrame | None:
        """Return the first frame that can be decoded whose number is `target` or higher; None after the last frame.

        Args:
            target: number of a frame.
            pause: whether to stop for now; asked between frames.

        Raises:
            UnreadableImage: the video cannot be read.
            DecodingPaused: `pause` was true before the frame was reached.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file; the next call of `advance` opens it again, with what is known about its frames."""
