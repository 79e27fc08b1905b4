"""The picture shows the numbers of the report, says what it leaves out, and never leaves the sheet."""

import numpy as np
import pytest
from model_folders import random_model

from npgpt import BPETokenizer, CharacterTokenizer, GPTConfig
from npgpt.inspection import report_picture
from npgpt.inspection.report import evenly, make_report


@pytest.fixture
def sheet(monkeypatch):
    """The words on the drawn figure, and its axes: texts, images and boxes."""
    figures = pytest.importorskip("matplotlib.figure")

    def draw(made):
        figure = figures.Figure()
        monkeypatch.setattr(report_picture, "draw_picture", lambda path, drawing: drawing(figure))
        report_picture.write_picture(made, None)
        figure.draw_without_rendering()
        axes, = figure.axes
        width, height = figure.get_size_inches()
        for text in axes.texts:
            assert not text.get_parse_math(), text
            box = text.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
            assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text
        return [text.get_text() for text in axes.texts], axes
    return draw


def report_of(text, target, **shape):
    tokenizer = CharacterTokenizer("to be日")
    shape = {"block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 8} | shape
    tokens = tokenizer.encode_ordinary(text)
    return make_report("tiny", random_model(GPTConfig(6, **shape)), tokenizer, tokens, target, every=False)


def test_all_numbers_are_there_and_maps_are_shaded_by_them(sheet):
    made  = report_of("to be to", 5)
    texts, axes = sheet(made)
    images = axes.images
    for value in made.lens.surprisal:
        assert f"{value:.1f}" in texts
    most   = abs(made.saliency.contribution).max()
    places = max(0, 1 - int(np.floor(np.log10(most))))
    for value in made.saliency.contribution[0, :5]:
        assert f"{value:.{places}f}".replace("-", "−") in texts
    assert "Sensitivity: what the prediction of “·”, position 5, hung on" in texts
    left, right, below, above = np.array([image.get_extent() for image in images]).T        # y goes down
    assert len(images) == 2 * 2 and (left[1::2] > right[::2]).all() and (above[2:] > below[:2]).all()
    blue = [np.asarray(image.get_array())[..., 2] for image in images]
    for image, p in zip(blue, made.attention.reshape(4, 8, 8), strict=True):
        lower = np.tril_indices(8)
        np.testing.assert_allclose(image[lower], 1 - (1 - 130 / 255) * np.sqrt(p[lower]), atol=1e-6)
        assert (image[np.triu_indices(8, 1)] == 0.955).all()
    assert not [text for text in texts if text.startswith("Shown are")]


def test_the_lens_is_a_table_of_the_best_tokens_on_their_colours(sheet):
    made = report_of("to be to", 5)
    texts, axes = sheet(made)
    rows  = np.reshape(axes.texts[texts.index("reads"):][:5 * 9], (5, 9))
    names = [made.name(n) for n in range(8)]
    best  = [[made.names[int(id)] for id in row] for row in made.lens.tokens[:, :, 0]]
    assert [[text.get_text() for text in row] for row in rows] == [
        ["reads", *names], ["embedding", *best[0]], ["layer 0", *best[1]], ["layer 1", *best[2]],
        ["came next", *names[1:], "?"]]
    assert all(np.ptp([text.get_position()[0] for text in column]) < 1e-9 for column in rows.T)
    framed = [box for box in axes.patches if box.get_facecolor()[3] == 0 and box.get_linestyle() == "-"
              and np.allclose(box.get_edgecolor()[:3], np.array([38, 166, 118]) / 255)]
    assert len(framed) == (made.lens.rank[:, :-1] == 0).sum() > 0
    boxes = [box for box in axes.patches if box not in framed][-3 * 8:]
    np.testing.assert_allclose([box.get_facecolor()[0] for box in boxes],
                               1 - (1 - 38 / 255) * 0.75 * made.lens.probability[:, :, 0].ravel(), rtol=1e-6)
    for box, text in zip(boxes, rows[1:-1, 1:].flat, strict=True):
        assert box.get_path().get_extents().contains(*text.get_position())


def test_what_finds_no_room_is_said_and_what_the_font_lacks(sheet):
    made  = report_of("to be 日" * 5, 35, n_layer=30, n_head=14, n_embd=14)
    texts, axes = sheet(made)
    assert len(axes.images) == 12 * 12 and "layer 29" in texts and "layer 0" in texts
    assert "Shown are positions 21 to 34 of 0 to 34." in texts
    assert "Shown are 19 of 31 rows; the page, FILE.html, has all." in texts
    assert "Shown are 12 of 30 layers and 12 of 14 heads; the page, FILE.html, has more." in texts
    assert "□" in texts and "日" not in "".join(texts) and any("font lacks" in text for text in texts)


def test_formulas_line_ends_and_one_token_are_drawn(sheet):
    tokenizer = BPETokenizer([])
    model     = random_model(GPTConfig(tokenizer.vocab_size, 64, 1, 1, 8))
    for text in ("$a$_{b}\n\n" * 6, "t", "\x00" * 30):          # names wider than the margin
        tokens = tokenizer.encode_ordinary(text)
        texts, _ = sheet(make_report("$x$", model, tokenizer, tokens, 1, every=False))
        assert "What $x$ makes of a text" in texts and (texts.count("↵") >= 12) == ("$" in text)


def test_what_is_kept_is_spread_evenly_from_first_to_last():
    assert evenly(5, 9) == [0, 1, 2, 3, 4] and evenly(30, 4) == [0, 10, 19, 29] and evenly(7, 1) == [6]
    for count in range(1, 40):
        for most in range(1, 40):
            kept = evenly(count, most)
            assert len(kept) == min(count, most) and kept == sorted(set(kept)) and kept[-1] == count - 1
