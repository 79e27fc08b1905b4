"""The page is one file that asks for nothing, shows what was computed, and runs nothing that a text holds."""

import json
import re

import browser
import numpy as np
import pytest
from model_folders import random_model

from npgpt import BPETokenizer, CharacterTokenizer, GPTConfig
from npgpt.inspection import page, report
from npgpt.inspection.report import make_report
from npgpt.inspection.token_names import characters_cut, token_name

NASTY = ("</script><script>document.title='run'</script><!--<img id=injected src=x onerror=alert(1)>\n"
         "\"quoted\" & 'so' {style} {data} 😀é\u202e\u2028 \\u003c\x00")
NAME = "</script><!--<script><b>{data}</b>\u2028"
DRIVER = """
const told = {};
document.addEventListener("securitypolicyviolation", (event) => {
  document.documentElement.dataset.blocked = event.effectiveDirective; });
const key = (place, name) => place.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
told.first = byId("chosen-token").textContent;
told.looks = Array.from({ length: MAPS }, (_, layer) => Array.from({ length: HEADS }, (_, head) =>
  Array.from({ length: T }, (_, t) => Array.from(looks(layer, head, t)))));
told.salience = ["sensitivity", "contribution"].map((kind) =>
  Array.from({ length: T }, (_, n) => salience(n + 1, kind).map(({ value }) => value)));
told.guesses = Array.from({ length: LAYERS }, (_, layer) =>
  Array.from({ length: T }, (_, t) => guesses(layer, t)));
surpriseTokens[2].click();
told.clicked = byId("chosen-token").textContent;
told.say = byId("surprise-say").textContent;
told.lens = byId("lens-say").textContent;
told.pressed = Array.from(document.querySelectorAll('.token[aria-pressed="true"]'),
  ({ dataset }) => dataset.token);
key(byId("saliency-strip"), "ArrowRight");
told.arrow = byId("chosen-token").textContent;
key(byId("saliency-strip"), "End");
told.end = byId("chosen-token").textContent;
document.querySelector('[value="contribution"]').click();
told.title = saliencyTokens[0].title;
small[1][0].button.click();
key(byId("heads"), "ArrowRight");
told.head = byId("head-name").textContent;
told.focus = document.activeElement.getAttribute("aria-label");
lensCells[0][3].click();
told.cell = [byId("chosen-token").textContent, byId("lens-say").textContent];
key(lensCells[0][3], "ArrowDown");
told.below = document.activeElement.getAttribute("aria-label");
const pixels = (canvas) => new Set(new Uint32Array(
  canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size;
told.colours = [pixels(byId("head-map")), pixels(small[0][0].canvas), pixels(byId("lens-curve"))];
byId("theme").click();
told.theme = document.documentElement.dataset.theme;
new Image().src = "https://example.invalid/picture.png";
document.body.append(make("pre", { id: "told" }, JSON.stringify(told)));
"""


@pytest.fixture(scope="module")
def made():
    """A report of a model on a text of everything that could end a script or a string."""
    tokenizer = BPETokenizer.train(["to be or not to be", "<script> </script>"] * 3, vocab_size=270)
    tokens    = tokenizer.encode_ordinary(NASTY)
    config    = GPTConfig(tokenizer.vocab_size + 30, 256, 3, 2, 8)            # ids that no text has
    return make_report(NAME, random_model(config), tokenizer, tokens, 7)


def read(root, id):
    return root.one(id=id)


def test_the_page_holds_all_it_needs_and_no_address(made):
    text = page.make_page(made)
    markup = re.sub(r'<script type="application/json" id="data">.*?</script>', "", text, flags=re.S)
    assert not re.search(r"https?:|src=|@import|url\(|<link|innerHTML|eval\(", markup)
    assert text.count("<script") == text.count("</script>") == 2 and "<!--" not in text
    assert text.count("\u2028") == 1 and "&lt;b&gt;{data}&lt;/b&gt;" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert data["model"] == NAME
    assert [token["cut"] for token in data["tokens"] if "cut" in token] == [
        *4 * "😀", *2 * "é", *3 * ["‹U+202E›"], *3 * ["‹U+2028›"]]
    assert [token["name"] for token in data["tokens"]] == [token_name(b) for b in made.data]
    assert "default-src 'none'" in text and "unsafe" not in text


def test_a_browser_draws_it_and_runs_nothing_of_the_text(made, tmp_path):
    (tmp_path / "page.html").write_text(page.make_page(made), encoding="utf-8")
    root = browser.opened(tmp_path / "page.html")
    assert root.one("html").attributes.get("data-drawn") == "yes", read(root, "error").text
    assert "hidden" in read(root, "error").attributes
    assert not list(root.all("img")) and not list(root.all(id="injected"))
    assert read(root, "model").text == NAME and root.one("title").text == f"npgpt inspect: {NAME}"
    T     = len(made.tokens)
    names = [made.name(n) for n in range(T + 1)]
    for id, shown in (("surprise-strip", names), ("saliency-strip", names), ("attention-strip", names[:T])):
        assert [button.text for button in read(root, id).all("button")] == shown
    rows = list(read(root, "lens-table").one("tbody").all("tr"))
    assert [[cell.text for cell in row.all("td")] for row in rows] == [
        [made.names[int(best)] for best in row] for row in made.lens.tokens[:, :, 0]]
    right = [["right" in cell.attributes["class"].split() for cell in row.all("td")] for row in rows]
    np.testing.assert_array_equal(np.array(right)[:, :-1], made.lens.tokens[:, :-1, 0] == made.tokens[1:])
    assert not np.array(right)[:, -1].any() and np.array(right).sum() == (made.lens.rank[:, :-1] == 0).sum()
    assert len(list(read(root, "heads").all("button"))) == 3 * 2
    assert "‹E2›" in names and "‹U+0000›" in names and any("‹token" in name for name in made.names.values())
    assert not list(read(root, "notes").all("p"))


def test_what_is_shown_is_what_was_computed_and_all_of_it_obeys_mouse_and_keys(made, tmp_path, monkeypatch):
    part = page._part
    monkeypatch.setattr(page, "_part", lambda name: part(name) + (DRIVER if name == "attention.js" else ""))
    (tmp_path / "page.html").write_text(page.make_page(made), encoding="utf-8")
    root = browser.opened(tmp_path / "page.html", "#dark")
    assert "hidden" in read(root, "error").attributes, read(root, "error").text
    told, T = json.loads(read(root, "told").text), len(made.tokens)
    lower = np.tril_indices(T)
    for layer, heads in enumerate(told["looks"]):
        for head, rows in enumerate(heads):
            assert list(map(len, rows)) == list(range(1, T + 1))
            np.testing.assert_allclose(np.concatenate(rows) / 255, made.attention[layer, head][lower],
                                       rtol=0, atol=0.5 / 255 + 1e-6)
    for shown, values, step in zip(told["salience"], made.saliency, (0.5 / 255, 0.5 / 127), strict=True):
        for n, row in enumerate(shown):
            most = abs(values[n]).max()
            np.testing.assert_allclose(row, values[n, :n + 1], rtol=0, atol=(step + 1e-3) * most)
    shown = [[[guess["p"] for guess in cell] for cell in row] for row in told["guesses"]]
    np.testing.assert_allclose(shown, made.lens.probability, rtol=0, atol=1e-5)
    assert [[[guess["name"] for guess in cell] for cell in row] for row in told["guesses"]] == [
        [[made.names[int(id)] for id in cell] for cell in row] for row in made.lens.tokens]

    place = [f"{made.name(n)} position {n}" for n in range(T)]
    assert told["first"] == place[7] and told["clicked"] == place[2] and told["arrow"] == place[3]
    assert told["end"] == f"{made.name(T)} the guess after the text"
    assert f"cost {made.lens.surprisal[1]:.2f} bits" in told["say"] and told["pressed"] == ["2", "2", "2"]
    assert f"having read up to {made.name(1)} (position 1)" in told["lens"]
    value = float(told["title"].removeprefix("contribution: "))
    assert abs(value - made.saliency.contribution[T - 1, 0]) <= 0.02 * abs(made.saliency.contribution).max()
    assert told["head"] == "Layer 1, head 1" and told["focus"] == "layer 1, head 1"
    assert told["cell"][0] == place[4] and told["cell"][1].startswith("From the embedding alone, having read")
    best = made.names[int(made.lens.tokens[1, 3, 0])]
    assert told["below"].startswith(f"layer 0, after {made.name(3)}: {best}, ")
    assert min(told["colours"]) > 5 and told["theme"] == "light"
    assert root.one("html").attributes["data-blocked"] == "img-src", "a request could leave the page"


@pytest.mark.parametrize("text", ["t", "to", "tttt"])
def test_the_shortest_texts_are_drawn(text, tmp_path):
    tokenizer = CharacterTokenizer("to")
    made = make_report("tiny", random_model(GPTConfig(2, 4, 1, 1, 4)), tokenizer,
                       tokenizer.encode_ordinary(text), 1)
    (tmp_path / "page.html").write_text(page.make_page(made), encoding="utf-8")
    root = browser.opened(tmp_path / "page.html")
    assert root.one("html").attributes.get("data-drawn") == "yes", read(root, "error").text
    assert "hidden" in read(root, "error").attributes, read(root, "error").text


def test_layers_that_find_no_room_are_left_out_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MOST_WEIGHTS", 70)                           # of 3 layers, 2 heads, 28 each
    tokenizer = CharacterTokenizer("to be")
    made = make_report("tiny", random_model(GPTConfig(5, 8, 3, 1, 4)), tokenizer,
                       tokenizer.encode_ordinary("to be o"), 3)
    assert made.attention_layers == [0, 2] and made.attention.shape == (2, 1, 7, 7)
    (tmp_path / "page.html").write_text(page.make_page(made), encoding="utf-8")
    root = browser.opened(tmp_path / "page.html")
    assert "attention maps of 1 of 3 layers are left out: shown are layers 0, 2" in read(root, "notes").text
    assert [b.attributes["aria-label"] for b in read(root, "heads").all("button")] == ["layer 0, head 0",
                                                                                       "layer 2, head 0"]


def test_a_screenshot_is_no_blank_sheet(made, tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "page.html").write_text(page.make_page(made), encoding="utf-8")
    for theme, ground in (("light", (246, 245, 241)), ("dark", (15, 18, 23))):
        browser.chromium(f"--screenshot={tmp_path}/{theme}.png", "--window-size=1400,2600",
                         f"{(tmp_path / 'page.html').as_uri()}#{theme}")
        with image.open(tmp_path / f"{theme}.png") as picture:
            picture = picture.convert("RGB")
            assert picture.getpixel((3, 3)) == ground and len(picture.getcolors(1 << 24)) > 200


def test_tokens_are_named_so_that_they_can_be_told_apart():
    smile = "😀".encode()
    named = {b" the": "·the", b"\n\n": "↵↵", smile[:2]: "‹F0 9F›", b"a" + smile[:2]: "a‹F0 9F›",
             "\u200b".encode(): "‹U+200B›", b"\xff\xfe ok": "‹FF FE›·ok", b"": "‹empty›", b"\t\r": "⇥‹CR›",
             "\u0301".encode(): "‹U+0301›", "e\u0301".encode(): "e\u0301", b"x" * 99: "x" * 39 + "…",
             smile: "😀", "日本".encode(): "日本"}
    assert {data: token_name(data) for data in named} == named
    sun = "日".encode()
    parts = [b"a", smile[:2], smile[2:] + b"b", "é".encode(), sun[:1], b"", sun[1:]]
    assert characters_cut(parts) == ["", "😀", "😀", "", "日", "", "日"]
    assert characters_cut([smile[:3]]) == [""] and characters_cut([]) == []
