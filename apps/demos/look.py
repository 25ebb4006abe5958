"""Theme and style sheet of the demos, for light and dark; nothing is fetched from the network."""

from typing import Any

import gradio as gr

LOOK: dict[str, Any] = {
    # System fonts only: a theme's own would be fetched from the network.
    "theme": gr.themes.Soft(
        primary_hue="cyan",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        # Enough contrast for small text, and labels that do not compete with the picture.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_padding="0",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_label_background_fill="*neutral_100",
        block_label_background_fill_dark="*neutral_700",
        block_label_text_color="*neutral_800",
        block_label_text_color_dark="*neutral_100",
        block_border_width="1px",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
        slider_color="*primary_600",
    ),
    "css": """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#research { border-left: 4px solid #d97706; padding: .35rem .8rem; font-weight: 600;
            background: color-mix(in srgb, #d97706 14%, transparent); border-radius: 4px; }
#picture img, #result img { width: 100% !important; height: 100% !important; object-fit: contain !important; }
/* The labels and buttons stand above the picture, not on it. */
#picture .image-container, #result .image-container { padding: 44px 6px 6px; box-sizing: border-box; }
#examples > .gallery { display: grid; grid-template-columns: repeat(6, 1fr); gap: .5rem; }
#examples .gallery-item { width: 100%; max-width: none; aspect-ratio: 4 / 3; }
#examples .gallery-item :is(span, .container, img) { display: block; width: 100%; height: 100%; max-width: none; }
#examples .gallery-item img { object-fit: cover; }
.html-container { padding: 0 !important; }
#title h1 { margin: .2rem 0 .1rem; font-size: 1.5rem; }
#title p { margin: .15rem 0; color: var(--body-text-color-subdued); }
.cards { display: grid; grid-template-columns: repeat(3, 1fr); gap: .7rem; }
.card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .55rem .8rem;
        background: var(--block-background-fill); }
.card .name { font-size: .8rem; color: var(--body-text-color-subdued); }
.card .value { font-size: 1.3rem; font-weight: 650; color: var(--body-text-color); font-variant-numeric: tabular-nums; }
.card .unit { font-size: .85rem; color: var(--body-text-color-subdued); font-weight: 400; }
.hint { font-size: .82rem; color: var(--body-text-color-subdued); margin-top: .5rem; line-height: 1.35; }
.message { border-radius: 8px; padding: .7rem .9rem; border: 1px solid var(--border-color-primary);
           background: var(--block-background-fill); color: var(--body-text-color); }
.cases { display: flex; flex-wrap: wrap; gap: .7rem; }
.case { margin: 0; border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .4rem;
        background: var(--block-background-fill); max-width: 100%; }
.case img { max-width: 100%; border-radius: 4px; display: block; }
.case figcaption { font-size: .85rem; color: var(--body-text-color); display: flex; justify-content: space-between;
                   gap: .8rem; padding-top: .25rem; }
.case .similarity { font-variant-numeric: tabular-nums; color: var(--body-text-color-subdued); }
.bar-row { display: grid; grid-template-columns: minmax(6rem, 14rem) 1fr 4rem; gap: .7rem; align-items: center;
           padding: .15rem 0; color: var(--body-text-color); }
#best { font-weight: 650; }
.bar-name { overflow-wrap: anywhere; }
.bar { height: .8rem; border-radius: 4px; overflow: hidden;
       background: color-mix(in srgb, var(--body-text-color) 12%, transparent); }
.bar-fill { display: block; height: 100%; background: var(--primary-600, #0891b2); }
.bar-value { text-align: right; font-variant-numeric: tabular-nums; }
.message.error { border-color: #dc2626; background: color-mix(in srgb, #dc2626 12%, transparent); }
""",
}
