"""The result of a prediction of videos, and what the command reports of it."""

from dataclasses import dataclass, field
from typing import Any

from dinomed.adapters.inference.folder import PredictionResult
from dinomed.notice import RESEARCH_USE

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class VideoPredictionResult(PredictionResult):
    """The result of a prediction of videos.

    `images` is the number of predicted frames, `abstained` that of abstained frames (0 where the threshold is for whole
    videos), `kept` that of the videos that an interrupted call had predicted before, and `unreadable` has
    (path, reason) of videos with a problem.

    Attributes:
        groups: path of each video -> its folder in `folder`.
        answers: the answer for each video with a prediction, as in summary.json.
        abstained_videos: number of videos whose answer is abstained.
        abstention: the rule of abstention for frames and videos, in words; None without one.
    """

    groups: dict[str, str] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    abstained_videos: int = 0
    abstention: str | None = None

    @property
    def has_abstained_frames(self) -> bool:
        """Whether frames are abstained too, and not whole videos only."""
        return any("frames_abstained" in answer for answer in self.answers)

    def report(self) -> dict[str, Any]:
        """Return what the command prints."""
        report = {
            "output": str(self.folder), "summary": str(self.folder / SUMMARY_FILE), "videos": self.groups,
            "frames": self.images, "kept_videos": self.kept, "answers": self.answers,
            "problems": [{"video": video, "reason": reason} for video, reason in self.unreadable],
        }  # fmt: skip
        if self.abstention is not None:
            report |= {"abstained_frames": self.abstained} if self.has_abstained_frames else {}
            report |= {"abstained_videos": self.abstained_videos, "abstention": self.abstention}
        return report | {"note": RESEARCH_USE}

    def abstained_text(self) -> str | None:
        """Return how many frames and videos are abstained, and by which rule; None without one."""
        if self.abstention is None:
            return None
        frames = f"{self.abstained:,} of {self.images:,} frames" if self.has_abstained_frames else None
        videos = f"{self.abstained_videos:,} of {len(self.answers):,} videos"
        return f"Abstained: {videos if frames is None else f'{frames}, {videos}'}. {self.abstention}"

    def facts(self) -> list[tuple[Any, ...]]:
        """Return rows of a name and a value for each video in `answers`: its file, and the numbers of its answer."""
        files = {group: path for path, group in self.groups.items()}
        values = [item for answer in self.answers for item in answer.items()]
        names = dict.fromkeys(name for name, value in values if isinstance(value, int | float | str))
        rows = [("file", *(files[answer["video"]] for answer in self.answers))]
        hidden = ("notice", "video")
        return rows + [(name, *(answer.get(name) for answer in self.answers)) for name in names if name not in hidden]
