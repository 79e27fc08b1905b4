"""A tokenizer that brings every text into NFC before splitting it, as Qwen's do."""

import json
import random
import unicodedata

import pytest

from npgpt.errors import TokenizerError
from npgpt.tokenizers import BPETokenizer, byte_pair, load_tokenizer

TEXT  = "re\u0301sume\u0301 a\u030a\u0323 \u1100\u1161\u11a8 \u212b K\u0338 caf\u00e9 >\u0338 "
SPECIAL = {"<s>": 400, "</s>": 401}


@pytest.fixture(scope="module")
def trained():
    made = BPETokenizer.train([unicodedata.normalize("NFC", TEXT), "the cat sat on the mat"], 300, "qwen2")
    return BPETokenizer(made.merges, SPECIAL, "qwen2", ignore_merges=True, normalizer="NFC")


def test_a_text_is_encoded_as_its_composed_form_is(trained):
    plain = BPETokenizer(trained.merges, SPECIAL, "qwen2", ignore_merges=True)
    for ids in (trained.encode("re\u0301"), trained.encode_ordinary("re\u0301"),
                trained.encode_bytes("re\u0301".encode())):
        assert ids == plain.encode("r\u00e9") != plain.encode("re\u0301")
    assert trained.decode(trained.encode("e\u0301")) == "\u00e9"


def test_special_tokens_are_cut_out_before(trained):
    """Or ">" would come to be another character, with what follows it."""
    assert trained.encode("<s>\u0338e\u0301", "all") == [400, *trained.encode_ordinary("\u0338\u00e9")]
    assert trained.decode(trained.encode_ordinary("<s>\u0338")) == "<s\u226f"


def test_bytes_that_are_no_text_stay_and_text_between_them_is_composed(trained):
    ids = trained.encode_bytes(b"\xffe\xcc\x81\xcc")
    assert trained.decode_bytes(ids) == b"\xff\xc3\xa9\xcc"


def test_a_long_text_is_encoded_like_a_short_one(trained, monkeypatch):
    long = TEXT * 300
    assert len(long) > byte_pair.LONG_TEXT
    ids = trained.encode(long)
    monkeypatch.setattr(byte_pair, "LONG_TEXT", len(long) + 1)
    assert ids == trained.encode(long)
    assert trained.decode(ids) == unicodedata.normalize("NFC", long)


def test_it_is_saved_and_unknown_ones_are_refused(trained, tmp_path):
    trained.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        read = load_tokenizer(path)
        assert read.normalizer == "NFC" and read.encode(TEXT) == trained.encode(TEXT)
    data = json.loads((tmp_path / "tokenizer.json").read_bytes())
    data["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    (tmp_path / "other.json").write_text(json.dumps(data))
    assert load_tokenizer(tmp_path / "other.json").normalizer == "NFC"
    with pytest.raises(TokenizerError, match="unknown normalizer 'NFKC': the known one is NFC"):
        BPETokenizer((), normalizer="NFKC")
    BPETokenizer(()).save(tmp_path / "without")
    config = tmp_path / "without" / "tokenizer_config.json"
    entries = json.loads(config.read_bytes())
    del entries["normalizer"]                                            # as before there was one
    config.write_text(json.dumps(entries))
    assert load_tokenizer(tmp_path / "without").normalizer is None


@pytest.mark.parametrize("read", ["theirs", "saved"])
def test_the_ids_are_hugging_faces(read, trained, tmp_path):
    pytest.importorskip("tokenizers.models")                # this folder is called "tokenizers" too
    import tokenizers
    trained.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    if read == "theirs":
        theirs.save(str(tmp_path / "theirs.json"))
    ours = load_tokenizer(tmp_path / f"{read}.json" if read == "theirs" else tmp_path)
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choices([*TEXT, *SPECIAL, "\u0327", "\u11a8", "\u0344", "\ufb1d"], k=12))
        assert ours.encode(text, allowed_special="all") == theirs.encode(text).ids, ascii(text)
        theirs.encode_special_tokens = True
        assert ours.encode_ordinary(text) == theirs.encode(text).ids, ascii(text)
        theirs.encode_special_tokens = False


def test_the_tokenizer_that_transformers_makes_for_qwen_is_read(trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    trained.save(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_bytes())
    lines  = (tmp_path / "merges.txt").read_text("utf-8").split("\n")[1:-1]
    merges = [tuple(line.split(" ")) for line in lines]
    theirs = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_tokenizer(tmp_path / "theirs")
    assert (ours.normalizer, ours.pattern) == ("NFC", "qwen2")
    text = "1234 I'LL re\u0301sume\u0301\n\n the<|endoftext|>\u0338"
    assert ours.encode(text, allowed_special="all") == theirs(text).input_ids
    ours.save(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again(text).input_ids == theirs(text).input_ids
