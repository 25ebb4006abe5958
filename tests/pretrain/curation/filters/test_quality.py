"""Quality: synthetic and real pictures pass, planted junk does not, and each fact means what it says."""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from dinomed.burned_in_text.find import find_text, text_share
from dinomed.datasets.synthetic.scene import KINDS, draw_scene
from dinomed.datasets.synthetic.view import take_view
from dinomed.images.read import read_image
from dinomed.pretrain.curation.descriptors.synthetic_copies import draw_text
from dinomed.pretrain.curation.filters.config import QualityConfig
from dinomed.pretrain.curation.filters.quality import QUALITY_REASONS, find_border, judge, measure_quality

CONFIG = QualityConfig()


def draw_lesion(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return take_view(draw_scene(KINDS[seed % 3], 200, 270, rng), 150, 200, rng)[0]


def verdict(image: np.ndarray) -> str | None:
    return judge(measure_quality(image), CONFIG)


def plant_junk(image: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Junk of every kind, by the reason that is expected."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1.5, image.shape)

    def pixels(values: np.ndarray) -> np.ndarray:
        return np.clip(values, 0, 255).astype(np.uint8)

    height, width = image.shape[:2]
    return {
        "black": draw_text(pixels(np.abs(noise)), ["12:44:01", "NO SIGNAL"], 0.06, (0.05, 0.05)),
        "blank": pixels(rng.integers(40, 220) + noise),
        "blurred": np.asarray(cv2.GaussianBlur(image, (0, 0), 0.03 * min(height, width))),
        "over-exposed": pixels(image * 2.0 + 130),
        "too small": np.asarray(cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA)),
        "borders": np.pad(image, ((height, 0), (0, width * 3 // 2), (0, 0))),
        "text": draw_text(image, ["CONFIDENTIAL", "PATIENT 4711", "12.03.2019", "DO NOT COPY"], 0.12, (0.04, 0.1)),
    }


def test_synthetic_lesions_all_pass() -> None:
    assert [seed for seed in range(100) if verdict(draw_lesion(seed))] == []


def test_planted_junk_is_found_for_its_reason() -> None:
    assert set(plant_junk(draw_lesion(0), 0)) == set(QUALITY_REASONS)
    wrong: Counter[str] = Counter()
    for seed in range(20):
        for expected, picture in plant_junk(draw_lesion(seed), seed).items():
            wrong[expected] += verdict(picture) != expected
    assert wrong.total() <= 3, wrong  # of 140; a few lesions are too dark to over-expose, or too pale for letters


@pytest.mark.long
@pytest.mark.data
def test_real_pictures_pass_and_junk_made_of_them_does_not(real_data: Path) -> None:
    verdicts: Counter[str | None] = Counter()
    missed: Counter[str] = Counter()
    for folder, step in (("dermoscopy", 100), ("dermoscopy_unlabelled", 20), ("polyps", 10)):
        for path in sorted((real_data / folder / "images").glob("*.jpg"))[::step]:
            image = read_image(path)
            verdicts[verdict(image)] += 1
            if len(missed) < 10 and verdicts.total() % 10 == 0 and folder != "polyps":
                junk = plant_junk(image, 0)
                missed += Counter(
                    kind for kind in ("black", "blank", "blurred", "too small") if not verdict(junk[kind])
                )
    assert verdicts.total() > 160
    assert verdicts.total() - verdicts[None] <= 2, verdicts
    assert missed.total() == 0, missed


def test_each_threshold_can_be_switched_off() -> None:
    junk = plant_junk(draw_lesion(1), 1)
    off = QualityConfig(**dict.fromkeys(QualityConfig.model_fields))
    assert {judge(measure_quality(picture), off) for picture in junk.values()} == {None}


def test_the_border_is_what_frames_and_not_what_is_dark_inside() -> None:
    gray = np.random.default_rng(0).integers(60, 250, (100, 200)).astype(np.uint8)
    gray[40:60, 90:110] = 0  # a dark lesion
    assert not find_border(gray).any()
    framed = np.pad(gray, ((10, 0), (0, 20)), constant_values=235)
    assert find_border(framed)[:10].all()
    assert find_border(framed).sum() == framed.size - gray.size
    y, x = np.mgrid[:100, :200]
    rim = np.hypot((y - 50) / 50, (x - 100) / 100) > 1
    gray[rim] = 10
    assert (find_border(gray) == rim).all()


def test_facts_of_content_do_not_count_a_black_frame() -> None:
    lesion = draw_lesion(2)
    framed = np.pad(lesion, ((30, 30), (40, 40), (0, 0)))
    plain, inside = measure_quality(lesion), measure_quality(framed)
    share = 1 - lesion.shape[0] * lesion.shape[1] / (framed.shape[0] * framed.shape[1])
    assert inside.border_share == pytest.approx(share, abs=0.02)  # a dark rim of its own may join it
    assert inside.luminance_mean == pytest.approx(plain.luminance_mean, abs=3)
    assert inside.sharpness == pytest.approx(plain.sharpness, rel=0.25)


def test_sharpness_falls_with_blur_and_does_not_depend_on_the_size() -> None:
    lesion = np.asarray(cv2.resize(draw_lesion(3), (800, 600), interpolation=cv2.INTER_CUBIC))
    values = [measure_quality(lesion).sharpness]
    values += [measure_quality(np.asarray(cv2.GaussianBlur(lesion, (0, 0), s))).sharpness for s in (4, 8, 16)]
    assert sorted(values, reverse=True) == values
    assert values[0] > 10 * values[2]
    double = np.asarray(cv2.resize(lesion, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))
    assert measure_quality(double).sharpness == pytest.approx(values[0], rel=0.1)


@pytest.mark.parametrize("ink", [(255, 255, 255), (0, 0, 0)])
@pytest.mark.parametrize("size", [0.05, 0.1])
def test_drawn_text_is_found_where_it_is(ink: tuple[int, int, int], size: float) -> None:
    hits = 0
    for seed in range(20):
        lesion = draw_lesion(seed)
        written = draw_text(lesion, ["PATIENT 4711", "12.03.2019"], size, (0.1, 0.3), ink)
        changed = (written != lesion).any(axis=2)
        inside = np.zeros_like(changed)
        boxes, (height, _) = find_text(written)
        scale = written.shape[0] / height
        for left, top, right, bottom in boxes:
            inside[int(top * scale) : round(bottom * scale), int(left * scale) : round(right * scale)] = True
        hits += bool((changed & inside).sum() > 0.5 * changed.sum())
    assert hits >= 15  # letters of 5 px, and white on pale skin, do not always stand out


def test_hair_rulers_and_plain_lesions_are_no_text() -> None:
    """The synthetic lesions have hair in half of the pictures and a ruler in an eighth."""
    shares = [text_share(draw_lesion(seed)) for seed in range(60)]
    assert sum(share > 0 for share in shares) <= 3
    ruler = draw_lesion(0)
    for n in range(20):
        cv2.line(ruler, (10 + 9 * n, 149), (10 + 9 * n, 149 - (20 if n % 5 == 0 else 10)), (10, 10, 10), 1)
    assert text_share(ruler) < 0.02  # the skin between the marks may look like a letter or three
