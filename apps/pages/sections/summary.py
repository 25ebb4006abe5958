"""Beginning and end of the page of an evaluation: the result in a sentence, and the commands that follow."""

from collections.abc import Mapping
from typing import Any

from dinomed.adapters.evaluated import MIN_GROUPS
from dinomed.adapters.task import find_task
from dinomed.html.page import next_steps, verdict


def build_verdict(result: Mapping[str, Any]) -> str:
    """Return the first metric with its interval, the data, and what limits the result, as one paragraph."""
    name, row = next(iter(result["intervals"].items()))
    title = find_task(result["task"]).metric_titles.get(name, name)
    unit = "groups" if result["unit"] == "group" else "images"
    over = "" if result["bootstrap"]["over"] == "images" else f" of {result['bootstrap']['groups']:,} groups"
    number = "–" if row["value"] != row["value"] else f"{row['value']:.3f}"
    sentence = f"{title[:1].upper()}{title[1:]}: {number} (95% interval {_range(row)})"
    limits = _limits(result)
    data = f"on {result['metrics']['n']:,} {unit}{over}, split {result['split']}."
    return verdict(sentence, " ".join([data, *limits]))


def _range(row: Mapping[str, Any]) -> str:
    undefined = row["low"] != row["low"]
    return "not defined: too few groups" if undefined else f"{row['low']:.3f} to {row['high']:.3f}"


def _limits(result: Mapping[str, Any]) -> list[str]:
    """Return sentences on what makes the result uncertain or too high."""
    seen, unlike, groups = result["seen_in_training"], result["unlike_training"], result["bootstrap"]["groups"]
    limits = []
    if used_seen(seen):
        limits.append("METRICS TOO HIGH: the fit used some of these images or groups.")
    if groups < MIN_GROUPS:
        limits.append(f"With {groups} groups the interval is a rough estimate.")
    if unlike["problem"] is None and unlike["images"]:
        limits.append(f"{unlike['images']:,} of {unlike['of']:,} images are unlike the training images.")
    return limits


def used_seen(seen: Mapping[str, Any]) -> bool:
    """Return whether images or groups of the fit are among the evaluated ones (entry `seen_in_training`)."""
    return bool(seen["images"] or seen["of_seen_groups"]) and not seen["left_out"]


def build_next_steps(result: Mapping[str, Any]) -> list[str]:
    """Return the section of the commands that follow; ADAPTER and DATA stand for the paths of this evaluation."""
    task = result["task"]
    shown = f"demo {task} --adapter" if task in ("segment", "classify") else "demo all --adapter"
    commands = [
        (f"dinomed {shown} ADAPTER", "single images in the browser"),
        ("dinomed predict ADAPTER NEW_IMAGES -o predictions", "new images, with a contact sheet"),
        ("dinomed evaluate ADAPTER --data DATA --by sex,site -o report", "subgroups"),
        ("dinomed evaluate ADAPTER ANOTHER --data DATA -o comparison", "paired differences of adapters"),
    ]
    return next_steps(commands, "ADAPTER and DATA stand for the paths of this evaluation.")
