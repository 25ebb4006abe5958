"""Panel of the most similar cases of an index, with the regions that match."""

from collections.abc import Mapping, Sequence
from typing import Any

from dinomed.adapters.retrieval.search import ImageIndex
from dinomed.apps.demos.cases import show_cases, similar
from dinomed.apps.demos.look import text
from dinomed.apps.demos.page import Panel
from dinomed.apps.demos.parts import Picture

MAX_CASES = 24


class RetrievePanel(Panel):
    """The panel of an index. Pictures of the index become parts of the page; nothing of a visit is kept."""

    name, title = "retrieve", "Similar"
    explanation = text("retrieve_explanation")

    def __init__(self, image_index: ImageIndex) -> None:
        self.image_index, self.check = image_index, image_index.check
        self.consumers, self.preprocessing = [image_index], image_index.backbone.preprocessing
        self.most = min(MAX_CASES, len(image_index.vector_index))

    def controls(self) -> str:
        return (
            f'<div class="dm-field"><label for="count">{text("cases")}</label>'
            f'<input id="count" type="range" min="1" max="{self.most}" value="{min(6, self.most)}" step="1" '
            'data-setting="count" data-asks><output for="count"></output></div>'
            '<label class="dm-check"><input id="regions" type="checkbox" checked data-setting="regions" data-asks> '
            f"{text('regions')}</label>"
            '<label class="dm-check"><input id="exclude" type="checkbox" checked data-setting="exclude" data-asks> '
            f"{text('exclude')}</label>"
            '<div class="dm-result" id="found" aria-live="polite"></div>'
        )

    def answer(self, picture: Picture, answers: Sequence[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        count = min(max(int(settings.get("count", 6)), 1), self.most)
        neighbors, related = similar(
            self.image_index, answers[0], picture.sha256, count, bool(settings.get("exclude", True))
        )
        regions = bool(settings.get("regions", True))
        return {"html": show_cases(self.image_index, picture, neighbors, related, regions=regions)}
