"""Panel of a batch: many pictures, a folder or a ZIP, with thumbnails, sorting and a download of all results."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from dinomed.apps.demos.batch.archive import MAX_FILES
from dinomed.apps.demos.batch.work import BatchWork
from dinomed.apps.demos.look import text
from dinomed.apps.demos.page import Panel
from dinomed.apps.demos.parts import Picture


class BatchPanel(Panel):
    """The panel of a batch, which the other panels of the page predict.

    Args:
        panels: the panels of the page; those with `summarizes` take part.
    """

    name, title = "batch", text("title_batch")
    explanation = text("batch_explanation").format(most=MAX_FILES)
    predicts = answers = False
    consumers = ()

    def __init__(self, panels: Sequence[Panel]) -> None:
        self.panels = [panel for panel in panels if panel.summarizes]
        self.preprocessing = self.panels[0].preprocessing
        work = BatchWork(self.panels)
        self.functions = {
            "batch_list": work.list_archive,
            "batch_predict": work.predict,
            "batch_keep": work.keep,
            "batch_close": work.close,
        }

    def controls(self) -> str:
        orders = {"number": text("batch_by_number")}
        if any(panel.outlines for panel in self.panels):
            orders |= {"area": text("batch_by_area"), "-area": text("batch_by_small_area")}
        for panel in (panel for panel in self.panels if panel.has_uncertainty):
            of = "" if len(self.panels) == 1 else f" ({panel.title})"
            orders[f"uncertainty{panel.name}"] = f"{text('batch_by_uncertainty')}{of}"
        if any(panel.check is not None for panel in self.panels):
            orders["unlikeness"] = text("batch_by_unlikeness")
        buttons = f'<span class="dm-hint">{text("batch_sort")}</span>' + "".join(
            f'<button type="button" data-sort="{key}" aria-pressed="{"true" if key == "number" else "false"}">'
            f"{html.escape(title)}</button>"
            for key, title in orders.items()
        )
        return (
            '<div class="dm-bar dm-sources">'
            f'<label class="dm-primary dm-file">{text("batch_files")}<input id="batch-files" type="file" multiple '
            f'aria-label="{text("batch_files")}"></label>'
            f'<label class="dm-file">{text("batch_folder")}<input id="batch-folder" type="file" webkitdirectory '
            f'aria-label="{text("batch_folder")}"></label></div>'
            f'<label class="dm-check"><input id="batch-names" type="checkbox"> {text("batch_names")}</label>'
            '<div id="batch-problem" role="alert"></div>'
            '<div id="batch-work" hidden><div class="dm-bar">'
            f'<progress id="batch-progress" value="0" max="1" aria-label="{text("batch_progress")}"></progress>'
            '<output id="batch-status" aria-live="polite"></output>'
            f'<button type="button" id="batch-cancel">{text("batch_cancel")}</button></div>'
            f'<div class="dm-bar dm-orders" id="batch-orders" role="group" aria-label="{text("batch_order")}">{buttons}'
            f'</div><ol id="batch-list" data-most="{MAX_FILES}" aria-label="{text("results")}"></ol>'
            f'<section id="batch-failed" aria-label="{text("batch_errors")}" hidden><h3>{text("batch_errors")}</h3>'
            '<ul id="batch-errors" tabindex="0"></ul></section>'
            f'<button type="button" id="batch-download" class="dm-primary" disabled>{text("batch_download")}</button>'
            "</div>"
        )

    def answer(self, picture: Picture, answers: Sequence[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        return {}
