"""Overlays: readable on narrow, small and crowded images, whatever the classes are called."""

import logging

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import ImageDraw

from ropevit_mmdet.visualization import labels
from ropevit_mmdet.visualization.figure_file import shortened
from ropevit_mmdet.visualization.overlays import (
    Detection,
    class_color,
    contact_sheet,
    draw_detections,
    side_by_side,
)


@pytest.fixture
def written(monkeypatch):
    """What is written into images: (text, its place), in the order of painting."""
    texts = []
    write = ImageDraw.ImageDraw.text

    def text(draw, at, text, **settings):
        anchor = settings.get("anchor", "la")
        texts.append((text, draw.textbbox(at, text, font=settings["font"], anchor=anchor)))
        write(draw, at, text, **settings)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


def blank(height, width):
    return np.zeros((height, width, 3), np.uint8)


def test_overlays_enlarge_small_images_and_paint_where_the_object_is():
    image = np.full((60, 80, 3), 128, np.uint8)
    mask = np.zeros((60, 80), bool)
    mask[20:40, 30:50] = True
    overlay = draw_detections(image, [Detection((30, 20, 50, 40), 0, 0.5, mask)], ["thing"])
    assert overlay.shape == (480, 640, 3)
    color = np.array(class_color(0))
    inside, outside, edge = overlay[30 * 8, 40 * 8], overlay[50 * 8, 70 * 8], overlay[160, 320]
    assert (outside == 128).all()
    torch.testing.assert_close(inside.astype(int), np.round(0.6 * 128 + 0.4 * color).astype(int),
                               atol=2, rtol=0)  # fmt: skip
    assert (edge == color).all()
    large = draw_detections(np.zeros((900, 700, 3), np.uint8), [], [])
    assert large.shape == (900, 700, 3)


def test_boxes_beyond_the_image_and_empty_masks_are_drawn():
    image = np.zeros((50, 700, 3), np.uint8)
    found = [
        Detection((-20, -10, 900, 80), 3, 0.9, np.zeros((50, 700), bool)),
        Detection((699.5, 49.5, 699.5, 49.5), 100, 0.1, None),
        Detection((800, 60, 700, 55), 1, 0.2, np.ones((50, 700), bool)),
    ]
    assert draw_detections(image, found, ["a", "b"]).any()


def test_contact_sheet_fits_every_image():
    images = [np.full((50, 100, 3), 10, np.uint8), np.full((300, 100, 3), 20, np.uint8)]
    sheet = contact_sheet(images * 3, columns=4, cell=120)
    assert sheet.shape == (2 * 124 + 4, 4 * 124 + 4, 3)
    assert (sheet[64, 64] == 10).all() and (sheet[64, 188] == 20).all() and (sheet[0] == 255).all()
    assert contact_sheet(images[:1], columns=4, cell=120).shape == (128, 128, 3)


def test_side_by_side_keeps_the_images():
    left, right = np.full((50, 100, 3), 10, np.uint8), np.full((50, 60, 3), 20, np.uint8)
    sheet = side_by_side([left, right], ["a", "b"])
    assert (sheet[-50:, :100] == 10).all() and (sheet[-50:, -60:] == 20).all()
    assert (sheet[:-50, :100] < 100).any() and sheet[-50:, 100:-60].min() == 255


def test_the_best_label_lies_on_top(written):
    found = [Detection((0, 0, 640, 40), 0, score) for score in (0.5, 0.9, 0.7)]
    draw_detections(blank(640, 640), found, ["thing"])
    assert [text for text, _ in written] == ["thing 0.50", "thing 0.70", "thing 0.90"]


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((400, 40), (1600, 160)),
        ((40, 400), (160, 1600)),
        ((40, 40), (640, 640)),
        ((4000, 4000), (4000, 4000)),
        ((3000, 100), (3000, 100)),  # enlarged, it would be longer than 4096
    ],
)
def test_a_usual_label_fits_whatever_the_size(written, size, drawn):
    height, width = size
    box = (width / 2, height / 2, width, height)
    overlay = draw_detections(blank(*size), [Detection(box, 0, 0.93)], ["traffic light"])
    assert overlay.shape == (*drawn, 3)
    ((text, (left, top, right, bottom)),) = written
    assert left >= 0 and top >= 0 and right <= drawn[1] and bottom <= drawn[0]
    assert text == ("traffi…ht 0.93" if width == 100 else "traffic light 0.93")


@pytest.mark.parametrize("size", [(400, 40), (480, 640)])
def test_long_names_are_shortened_and_keep_their_score(written, size):
    name = "traffic light (pedestrian), " * 4 + "the end"
    box = (5, 50, 30, 120)
    overlay = draw_detections(blank(*size), [Detection(box, 0, 0.93)], [name])
    ((text, (_, _, right, _)),) = written
    assert text.startswith("traffic") and "…" in text and text.endswith("end 0.93")
    assert right <= overlay.shape[1]


def test_names_are_shortened_in_their_middle():
    assert shortened("traffic light", 13) == "traffic light"
    assert shortened("traffic light", 8) == "traff…ht"
    assert [shortened("abc", length) for length in (2, 1)] == ["a…", "…"]


def test_labels_of_a_crowded_image_leave_most_of_it_free(written):
    random = np.random.default_rng(0)
    corners = random.uniform((0, 0), (580, 420), (100, 2))
    sides = random.uniform(10, 60, (100, 2))
    scores = random.permutation(np.linspace(0.3, 0.99, 100))
    found = [
        Detection((*corner, *(corner + side)), number % 80, float(score))
        for number, (corner, side, score) in enumerate(zip(corners, sides, scores))
    ]
    names = [f"class number {number}" for number in range(80)]
    overlay = draw_detections(blank(480, 640), found, names)
    covered = np.zeros((480, 640), bool)
    for _, (left, top, right, bottom) in written:
        covered[int(top) : int(bottom), int(left) : int(right)] = True
    assert 20 < len(written) < 60 and covered.mean() < 0.3
    assert written[-1][0].endswith(" 0.99")
    for one in found:  # all boxes are there
        x, y = map(int, one.box[:2])
        assert overlay[y, x].any() or covered[y, x]


def test_narrow_images_stand_wide_enough_for_their_titles(written):
    sheet = side_by_side([blank(3000, 20) + 10, blank(3000, 20) + 20], ["ground truth", "found"])
    (_, (left, _, end, _)), (_, (start, _, right, _)) = written
    assert left >= 0 and end < start and right <= sheet.shape[1]
    assert (sheet[-1] == 10).all(axis=1).sum() == (sheet[-1] == 20).all(axis=1).sum() == 20


def write_font(path, characters):
    """A font in which every character is a full square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    glyphs = {".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord(one): "square" for one in characters})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (900, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


def test_names_in_other_scripts_take_a_font_that_has_them(tmp_path, monkeypatch, caplog):
    some = write_font(tmp_path / "a.ttf", "信 0.93")
    all_of_it = write_font(tmp_path / "b.ttf", "信号灯cat 0.93")
    (tmp_path / "c.ttf").write_bytes(b"damaged")
    fonts = [str(tmp_path / "c.ttf"), some, all_of_it]
    monkeypatch.setattr(labels.font_manager, "findSystemFonts", lambda: fonts)
    names = ("信号灯", "cat")
    labels._other_font.cache_clear()
    assert labels._font_file("信号灯", names) == all_of_it
    assert labels._font_file("cat", names) == labels.FONT and not caplog.records
    found = [Detection((20, 50, 100, 120), 0, 0.93)]
    overlay = draw_detections(blank(200, 640), found, names)
    inside = overlay[30:50, 20:80].reshape(-1, 3)
    background = (inside == class_color(0)).all(axis=1).mean()
    assert background < 0.5  # squares as good as fill the label

    fonts.remove(all_of_it)
    labels._other_font.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            draw_detections(blank(200, 640), found, names)
    (record,) = caplog.records
    assert "灯" in record.getMessage() and "drawn as empty boxes" in record.getMessage()
    labels._other_font.cache_clear()
