"""Tokenizers that others saved: the ids are theirs."""

import base64
import json
import random
from pydoc_data.topics import topics

import pytest

from npgpt import errors
from npgpt.tokenizers import BPETokenizer, foreign, load_tokenizer
from npgpt.tokenizers.byte_alphabet import from_symbols, to_symbols
from npgpt.tokenizers.patterns import SPLIT_PATTERNS

ENGLISH = topics["class"] + topics["exprlists"] + topics["types"]
MIXED = ("Don't STOP: it's 12345 o'clock,  I'LL\r\n\r\n\tsee camelCase/paths... naïve 你好世界 Привет ǅ\n\n  "
         "١٢٣ a1b22c333 'tis\u3000x  \n🤖👩‍🚀 a\u0301 HTTPServer's  \n")
EOT = "<|endoftext|>"


def texts():
    """Real ones, and a thousand of characters that patterns care about."""
    draw = random.Random(0)
    alphabet = list("aAbB   \n\r\t''sStTlLvVeErRmMdD.,!/-_1234567890½٣éÉß中文ǅʰ\u0301\u00a0\u3000\x1c\x85🤖")
    yield from (ENGLISH, MIXED, "", " ")
    for _ in range(1000):
        yield "".join(draw.choices(alphabet, k=draw.randrange(1, 30)))


@pytest.fixture(scope="module")
def trained():
    return BPETokenizer.train([ENGLISH, MIXED * 20], 900, "cl100k")


# GPT-2's two files

def write_gpt2(folder, tokenizer, names):
    """The vocabulary and the merges alone, under these names."""
    tokenizer.save(folder)
    for old, new in zip(("vocab.json", "merges.txt"), names, strict=True):
        (folder / old).rename(folder / new)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


@pytest.mark.parametrize("names", foreign.GPT2_FILES)
def test_gpt2s_files_are_read_under_both_their_names(names, trained, tmp_path):
    write_gpt2(tmp_path, trained, names)
    read = load_tokenizer(tmp_path)
    assert (read.merges, read.special_tokens, read.pattern) == (trained.merges, {EOT: 899}, "gpt2")
    assert load_tokenizer(tmp_path, pattern="cl100k").encode(MIXED) == trained.encode(MIXED)
    assert load_tokenizer(tmp_path, special_tokens={"<s>": 901}).special_tokens == {"<s>": 901}
    if names[1] == "vocab.bpe":
        assert load_tokenizer(tmp_path / names[1]).encode(MIXED) == read.encode(MIXED)
    (tmp_path / names[0]).rename(tmp_path / "away")
    with pytest.raises(errors.TokenizerError, match=f"{names[0]} is missing"):
        load_tokenizer(tmp_path)


def test_gpt2s_files_of_a_tokenizer_that_splits_in_another_way_are_refused(trained, tmp_path):
    """Qwen's have the same names. Who says how they split need not be told."""
    write_gpt2(tmp_path, trained, ("vocab.json", "merges.txt"))
    config = tmp_path / "tokenizer_config.json"
    for name in ("GPT2Tokenizer", "GPT2TokenizerFast", None):
        config.write_text(json.dumps({"tokenizer_class": name, "eos_token": {"content": EOT, "special": True,
                                                                             "__type": "AddedToken"}}))
        assert load_tokenizer(tmp_path).pattern == "gpt2"
    config.write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    with pytest.raises(errors.TokenizerError, match=r"tokenizer_config.json cannot be used: its "
                       r"tokenizer_class is 'Qwen2Tokenizer', and there is no tokenizer.json to tell"):
        load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path, pattern="qwen2").pattern == "qwen2"
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)                                           # as the sentence advises
    ours = load_tokenizer(tmp_path)
    assert (ours.pattern, ours.normalizer) == ("qwen2", "NFC")
    assert all(ours.encode(text) == theirs.encode(text) for text in texts())


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "GPT2TokenizerFast", None])
@pytest.mark.parametrize(("name", "away", "heeded"), [
    ("add_prefix_space", ("vocab.json", "merges.txt"), True), ("add_prefix_space", ("tokenizer.json",), True),
    ("add_bos_token", ("vocab.json", "merges.txt"), False), ("add_bos_token", ("tokenizer.json",), True)])
def test_what_transformers_puts_before_a_text_by_gpt2s_settings_is_refused(name, away, heeded, kind,
                                                                              tmp_path):
    BPETokenizer.train([ENGLISH], 900).save(tmp_path)
    for file in away:
        (tmp_path / file).unlink()
    said = {"tokenizer_class": kind, "bos_token": EOT}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said | {name: False}))
    ids = load_tokenizer(tmp_path).encode("class")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said | {name: True}))
    if heeded:
        with pytest.raises(errors.TokenizerError, match=f"it asks for {name}, which npgpt has not"):
            load_tokenizer(tmp_path)
    else:
        assert load_tokenizer(tmp_path).encode("class") == ids
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, config=transformers.GPT2Config())
    assert (theirs.encode("class") != ids) == heeded


@pytest.mark.parametrize(("kind", "away"), [("PreTrainedTokenizerFast", ("vocab.json", "merges.txt")),
                                            ("GPT2Tokenizer", ("tokenizer.json",))])
@pytest.mark.parametrize(("where", "entries"), [
    ("added_tokens.json", {EOT: 899, "<x>": 900}),
    ("added_tokens_decoder", {"899": {"content": EOT}, "900": {"content": "<x>"}}),
    ("additional_special_tokens", [EOT, "<x>"]), ("extra_special_tokens", {"an_x": "<x>"}),
    ("eos_token", {"content": "<x>", "__type": "AddedToken"}), ("bos_token", "<x>")])
def test_a_token_that_only_files_beside_the_tokenizer_have_is_refused(where, entries, kind, away, tmp_path):
    """transformers finds it in a text, and npgpt would read its letters."""
    BPETokenizer.train([ENGLISH], 900).save(tmp_path)
    for name in away:
        (tmp_path / name).unlink()
    config = {"tokenizer_class": kind, "eos_token": EOT}
    if where == "added_tokens.json":
        (tmp_path / where).write_text(json.dumps(entries))
    else:
        config |= {where: entries}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(errors.TokenizerError, match=f"cannot be used: '<x>', of {where}.* is no special or"):
        load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path, special_tokens={"<x>": 901}).special_tokens == {"<x>": 901}
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)                                           # as the sentence advises
    ids = load_tokenizer(tmp_path).encode("a<x>b", allowed_special="all")
    assert ids == theirs.encode("a<x>b") and 900 in ids


def test_gpt2s_own_files_give_tiktokens_ids(gpt2):
    ours, theirs = gpt2
    assert ours.vocab_size == 50257 and ours.special_tokens == {EOT: 50256}
    for text in texts():
        assert ours.encode(text) == theirs.encode(text)


# Hugging Face's tokenizer.json

def hugging_face(pattern, ignore_merges=False):
    """Its own trainer's tokenizer, special tokens first, as SmolLM numbers them."""
    pytest.importorskip("tokenizers.models")                # this folder is called "tokenizers" too
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern in ("gpt2", "smollm"))
    steps = {"gpt2": [], "smollm": [pre_tokenizers.Digits(individual_digits=True)]}.get(
        pattern, [pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERNS[pattern]), "isolated")])
    theirs = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    theirs.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level]) if steps else byte_level
    theirs.decoder = decoders.ByteLevel()
    theirs.train_from_iterator([ENGLISH, MIXED * 20], trainers.BpeTrainer(
        vocab_size=900, special_tokens=[EOT, "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return theirs


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "qwen2", "o200k", "smollm"])
def test_a_tokenizer_json_gives_hugging_faces_ids(pattern, tmp_path):
    theirs = hugging_face(pattern)
    theirs.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    ours = load_tokenizer(tmp_path)
    assert ours.pattern == pattern
    assert ours.special_tokens == {EOT: 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert ours.vocab_size == theirs.get_vocab_size()
    for text in texts():
        assert ours.encode(text) == theirs.encode(text).ids
    marked = f"<|im_start|>user\nHi{EOT}<|im_end|>"
    assert ours.encode(marked, allowed_special="all") == theirs.encode(marked).ids
    assert load_tokenizer(tmp_path / "tokenizer.json").merges == ours.merges
    ours.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.encode(MIXED) == ours.encode(MIXED) and again.special_tokens == ours.special_tokens


@pytest.mark.parametrize("pattern", ["gpt2", "smollm"])
def test_a_byte_without_a_token_is_left_out_as_hugging_face_leaves_it_out(pattern, tmp_path):
    """Even from within a piece: what stood around it merges."""
    theirs = json.loads(hugging_face(pattern).to_str())
    missing = [to_symbols(bytes([byte])) for byte in (0x04, 0x00, 0x7F, 0xC8, 0xF5)]
    used = {symbol for merge in theirs["model"]["merges"] for symbol in "".join(merge)}
    assert not used & set(missing)
    for symbol in missing:
        del theirs["model"]["vocab"][symbol]
    (tmp_path / "tokenizer.json").write_text(json.dumps(theirs))
    import tokenizers
    theirs, ours = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), load_tokenizer(tmp_path)
    rng = random.Random(0)
    for length in [*range(12), 80, 500]:
        for _ in range(20):
            text = "".join(rng.choices("the\x04\x00\x7fȀȁ ni\n", k=length))
            assert ours.encode(text) == theirs.encode(text).ids, text
    ours.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode("th\x04e") == ours.encode("th\x04e")


def test_merges_written_as_text_and_as_lists_are_the_same(trained, tmp_path):
    trained.save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_bytes())
    assert isinstance(data["model"]["merges"][0], str)
    data["model"]["merges"] = [merge.split(" ") for merge in data["model"]["merges"]]
    (tmp_path / "lists.json").write_text(json.dumps(data), "utf-8")
    assert load_tokenizer(tmp_path / "lists.json").merges == trained.merges


@pytest.mark.parametrize("nothing", [None, "", 0.0])
def test_what_leaves_the_merges_as_they_are_is_no_hindrance(nothing, trained, tmp_path):
    """GPT-2's own tokenizer.json has "" for end_of_word_suffix."""
    trained.save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_bytes())
    data["model"] |= dict.fromkeys(["dropout", "end_of_word_suffix", "continuing_subword_prefix"], nothing)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert load_tokenizer(tmp_path / "tokenizer.json").encode(MIXED) == trained.encode(MIXED)


def test_ignore_merges_takes_a_whole_piece(tmp_path):
    """Without it nothing can ever become the token "cat", which no merge makes."""
    letters = dict(BPETokenizer(()).vocabulary) | {256: b"cat"}
    by_merges, whole = (BPETokenizer((), vocabulary=letters, ignore_merges=flag) for flag in (False, True))
    assert whole.encode("cat") == [256] and len(by_merges.encode("cat")) == 3
    assert len(whole.encode(" cat")) == 4                                    # its piece is " cat"
    whole.save(tmp_path)
    assert load_tokenizer(tmp_path).encode("cat") == [256]
    assert load_tokenizer(tmp_path / "tokenizer.json").encode("cat") == [256]


@pytest.mark.parametrize("unmade", ["[PAD300]", "<unused0>", "Ġclass"])
def test_a_token_that_no_merge_makes_is_kept(unmade, trained, tmp_path):
    """As the unused ones of GGUF files: it is read, saved, and read again, and no text becomes it."""
    trained.save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_bytes())
    model = data["model"]
    model["merges"] = [merge for merge in model["merges"] if not merge.replace(" ", "").startswith("Ġclass")]
    model["ignore_merges"] = False
    model["vocab"].setdefault(unmade, 900)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    read = load_tokenizer(tmp_path / "tokenizer.json")
    read.save(tmp_path / "saved")
    again, id = load_tokenizer(tmp_path / "saved"), model["vocab"][unmade]
    assert again.vocabulary == read.vocabulary and again.vocabulary[id] == from_symbols(unmade)
    assert again.encode(MIXED + unmade) == read.encode(MIXED + unmade)
    assert id not in read.encode(MIXED + unmade + " class")


# tiktoken's files

def write_tiktoken(path, tokenizer):
    """The order of the lines means nothing."""
    tokens = list(tokenizer.vocabulary.items())
    random.Random(0).shuffle(tokens)
    path.write_text("".join(f"{base64.b64encode(data).decode()} {id}\n" for id, data in tokens))


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base"])
def test_a_tiktoken_file_gives_tiktokens_ids(name, tmp_path):
    pytest.importorskip("tiktoken")
    import tiktoken
    pattern, special = foreign.TIKTOKEN[name]
    trained = BPETokenizer.train([ENGLISH, MIXED * 20], 900, pattern)
    write_tiktoken(tmp_path / f"{name}.tiktoken", trained)
    ranks = {data: id for id, data in trained.vocabulary.items()}
    theirs = tiktoken.Encoding(name, pat_str=SPLIT_PATTERNS[pattern], mergeable_ranks=ranks,
                               special_tokens=special)
    ours = load_tokenizer(tmp_path / f"{name}.tiktoken")
    assert ours.vocab_size == theirs.n_vocab and ours.special_tokens == special
    for text in texts():
        assert ours.encode(text) == theirs.encode(text)


def test_a_token_is_made_from_any_two_that_give_its_bytes(tmp_path):
    """As tiktoken does: "abc" is a + bc here, though ab + c came to be first."""
    pytest.importorskip("tiktoken")
    import tiktoken
    letters = dict(BPETokenizer(()).vocabulary) | {256: b"bc", 257: b"abc", 258: b"cab", 259: b"ab"}
    ranks = {data: id for id, data in letters.items()}
    theirs = tiktoken.Encoding("x", pat_str=SPLIT_PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={})
    write_tiktoken(tmp_path / "r50k_base.tiktoken", BPETokenizer((), (), vocabulary=letters))
    ours, draw = load_tokenizer(tmp_path / "r50k_base.tiktoken"), random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choices("abc", k=draw.randrange(1, 12)))
        assert ours.encode(text) == theirs.encode(text), text


def test_merges_that_make_the_same_token_give_tiktokens_ids(tmp_path):
    """There none goes before another. For merges that stand together, as read from its files, that is one."""
    tiktoken, draw = pytest.importorskip("tiktoken"), random.Random(0)
    for _ in range(30):
        tokens = sorted({"".join(draw.choices("ab", k=draw.randrange(2, 6))) for _ in range(12)})
        draw.shuffle(tokens)
        vocabulary = BPETokenizer(()).vocabulary | {256 + n: token.encode() for n, token in enumerate(tokens)}
        theirs = tiktoken.Encoding("x", pat_str=SPLIT_PATTERNS["gpt2"], special_tokens={},
                                   mergeable_ranks={data: id for id, data in vocabulary.items()})
        write_tiktoken(tmp_path / "r50k_base.tiktoken", BPETokenizer((), (), vocabulary=vocabulary))
        ours = load_tokenizer(tmp_path / "r50k_base.tiktoken")
        for _ in range(60):
            text = "".join(draw.choices("ab", k=draw.randrange(1, 20)))
            assert ours.encode(text) == theirs.encode(text), (tokens, text)


def test_merges_that_make_the_same_token_come_in_their_order(tmp_path):
    """As in Hugging Face's tokenizers, and not all with the first; also once saved again."""
    pytest.importorskip("tokenizers.models")                # this folder is called "tokenizers" too
    import tokenizers
    draw = random.Random(0)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    for _ in range(30):
        ids, merges = {letter: id for id, letter in enumerate(alphabet)}, []
        while len(merges) < 12:
            pair = tuple(draw.choices(["a", "b", *(token for token in ids if len(token) > 1)], k=2))
            if pair not in merges and len("".join(pair)) < 5:
                merges.append(pair)
                ids.setdefault("".join(pair), len(ids))
        theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=merges))
        theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        theirs.save(str(tmp_path / "tokenizer.json"))
        ours = load_tokenizer(tmp_path / "tokenizer.json")
        ours.save(tmp_path / "saved")
        again = load_tokenizer(tmp_path / "saved")
        for _ in range(40):
            text = "".join(draw.choices("ab", k=draw.randrange(1, 12)))
            assert ours.encode(text) == again.encode(text) == theirs.encode(text).ids, (merges, text)


def test_a_tiktoken_file_of_another_name_needs_a_pattern(trained, tmp_path):
    write_tiktoken(tmp_path / "mine.tiktoken", trained)
    with pytest.raises(errors.TokenizerError, match="mine.tiktoken does not say how to split text: pass"):
        load_tokenizer(tmp_path / "mine.tiktoken")
    read = load_tokenizer(tmp_path / "mine.tiktoken", "cl100k", {EOT: 899})
    assert read.encode(MIXED) == trained.encode(MIXED) and read.eos_token_id == 899
