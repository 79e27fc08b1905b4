"""What others saved and npgpt cannot read as they do: it is refused, in one sentence that names the file."""

import json
from pydoc_data.topics import topics

import pytest
from test_foreign import write_tiktoken

from npgpt import errors
from npgpt.tokenizers import BPETokenizer, load_tokenizer
from npgpt.tokenizers.patterns import SPLIT_PATTERNS


@pytest.fixture(scope="module")
def trained():
    return BPETokenizer.train([topics["class"], topics["types"]], 900, "cl100k")


def without_a_byte(data):
    data["model"]["unk_token"] = "b"
    del data["model"]["vocab"]["\u0100"]                     # how 0x00 is written
    return data


def change(**changes):
    """Sets entries of a tokenizer.json, of its model where the name begins with model_."""
    def changed(data):
        for name, value in changes.items():
            place = data["model"] if name.startswith("model_") else data
            place[name.removeprefix("model_")] = value
        return data
    return changed


def template(*tokens, id=899):
    """A post_processor that puts tokens before a text."""
    return {"type": "TemplateProcessing", "single": [*({"SpecialToken": {"id": token}} for token in tokens),
                                                     {"Sequence": {"id": "A"}}],
            "special_tokens": {token: {"id": token, "ids": [id]} for token in tokens}}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
SPLIT      = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERNS["cl100k"]}, "behavior": "Isolated",
              "invert": False}
LONG       = "x" * 1000                                      # no refusal repeats it whole
DIGITS     = {"type": "Digits", "individual_digits": True}


def splitting(*steps):
    return change(pre_tokenizer={"type": "Sequence", "pretokenizers": [*steps]})


REFUSED = {
    "a list": (lambda data: [], "no byte-level BPE"),
    "no model": (change(model=None), "no byte-level BPE"),
    "another model": (change(model_type="Unigram"), "no byte-level BPE"),
    "no merges": (change(model_merges=None), "no byte-level BPE"),
    "byte fallback": (change(model_byte_fallback=True), "no byte-level BPE"),
    "merges left out by chance": (change(model_dropout=0.1), "its dropout is 0.1, which npgpt does not have"),
    "ends of words": (change(model_end_of_word_suffix="</w>"), "its end_of_word_suffix is '</w>', which"),
    "insides of words": (change(model_continuing_subword_prefix="##"), "continuing_subword_prefix is '##'"),
    "unknown bytes": (without_a_byte, "it writes 'b' for bytes that no token stands for"),
    "a normalizer": (change(normalizer={"type": "NFKC"}), "changes the text before splitting it other"),
    "two normalizers": (change(normalizer={"type": "Sequence", "normalizers": [
        {"type": "NFC"}, {"type": "Lowercase"}]}), "changes the text before splitting it other"),
    "a normalizer that is no object": (change(normalizer="NFC"), "changes the text before splitting it"),
    "a vocabulary that is a list": (change(model_vocab=[["a", 0]]), "not a JSON object of tokens"),
    "words": (change(model_vocab={"▁the": 0}), "'▁the' is not written in GPT-2's characters"),
    "an unknown merge": (change(model_merges=["a 中"]), "merge 0 joins '中', which has no id"),
    "a merge of one": (change(model_merges=["ab"]), "merge 0 is not two tokens: 'ab'"),
    "a merge of three": (change(model_merges=[["a", "b", "c"]]), "merge 0 is not two tokens"),
    "a merge of numbers": (change(model_merges=[[1, 2]]), "merge 0 is not two tokens"),
    "a prefix space": (change(pre_tokenizer=BYTE_LEVEL | {"add_prefix_space": True, "use_regex": True}),
                       "splits text in a way"),
    "no splitting": (change(pre_tokenizer=None), "splits text in a way"),
    "bytes without splitting": (change(pre_tokenizer=BYTE_LEVEL), "splits text in a way"),
    "another pattern": (splitting(SPLIT | {"pattern": {"Regex": "(a+)+$"}}, BYTE_LEVEL), "splits text in a"),
    "a pattern taken out": (splitting(SPLIT | {"behavior": "Removed"}, BYTE_LEVEL), "splits text in a way"),
    "a pattern inside out": (splitting(SPLIT | {"invert": True}, BYTE_LEVEL), "splits text in a way"),
    "a pattern and GPT-2's": (splitting(SPLIT, BYTE_LEVEL | {"use_regex": True}), "splits text in a way"),
    "a pattern and a prefix space": (splitting(SPLIT, BYTE_LEVEL | {"add_prefix_space": True}),
                                     "splits text in a way"),
    "numbers": (splitting(DIGITS | {"individual_digits": False}, BYTE_LEVEL | {"use_regex": True}),
                "splits text in a way"),
    "digits alone": (splitting(DIGITS, BYTE_LEVEL), "splits text in a way"),
    "digits and a prefix space": (splitting(DIGITS, BYTE_LEVEL | {"use_regex": True,
                                                                  "add_prefix_space": True}),
                                  "splits text in a way"),
    "splitting that is no object": (change(pre_tokenizer=["ByteLevel"]), "splits text in a way"),
    "added tokens without content": (change(added_tokens=[{"id": 3}]), "added_tokens are not a list"),
    "an added token without an id": (change(added_tokens=[{"content": "<s>"}]), "'<s>' has the id None"),
    "an added token with two ids": (change(added_tokens=[{"content": "a", "id": 3}]), "'a' has two ids"),
    "two tokens before a text": (change(post_processor=template("<|endoftext|>", "<|endoftext|>")),
                                 "begins every text with '<|endoftext|>' and '<|endoftext|>'"),
    "an unknown token before a text": (change(post_processor=template("<s>")), "every text with '<s>'"),
    "another id before a text": (change(post_processor=template("<|endoftext|>", id=7)), "begins every text"),
    "a template without tokens": (change(post_processor={"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<s>"}}]}), "its post_processor is no template"),
    "a template without pieces": (change(post_processor={"type": "TemplateProcessing", "single": 3}),
                                  "its post_processor is no template"),
    "an unknown processor": (change(post_processor={"type": "Magic"}), "not know its post_processor 'Magic'"),
    "a token before a text without its id": (change(post_processor={"type": "BertProcessing", "cls": ["a"]}),
                                             "its post_processor is no template"),
    "an added token with another's id": (change(added_tokens=[{"content": "<s>", "id": 3}]),
                                         "the id 3 of the token '<s>' is another token's too"),
    "a long token's id": (change(added_tokens=[{"content": "<s>", "id": LONG}]), "'<s>' has the id 'xxx"),
    "a long token with two ids": (change(model_vocab={LONG: 0}, added_tokens=[{"content": LONG, "id": 3}]),
                                  "x… has two ids, 0 and 3"),
    "a long token with another's id": (change(added_tokens=[{"content": LONG, "id": 3}]), "the id 3 of the"),
    "a long token with its spaces": (change(added_tokens=[{"content": LONG, "id": 901, "special": False,
                                                           "lstrip": True}]), "x… asks for lstrip"),
    "long tokens before a text": (change(post_processor=template(*[LONG] * 9)), "begins every text with"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_json_that_does_not_fit_is_refused(name, trained, tmp_path):
    trained.save(tmp_path)
    change, reason = REFUSED[name]
    path = tmp_path / "other.json"
    path.write_text(json.dumps(change(json.loads((tmp_path / "tokenizer.json").read_bytes()))), "utf-8")
    with pytest.raises(errors.TokenizerError) as error:
        load_tokenizer(path)
    assert reason in str(error.value)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("line, reason", [
    ("IQ== 0", "line 257 has the token b'!' a second time"), ("IQ", "line 257 is not a token in base64"),
    ("YWI= x", "line 257 is not a token in base64"), ("!!! 256", "line 257 is not a token in base64"),
    (" 256", "line 257 is not a token in base64"), ("YWI= 7", "two tokens have the same rank"),
    ("YWI= " + "9" * 5000, "line 257 is not a token in base64"),
    (f"{'eHh4' * 1000} 256\n{'eHh4' * 1000} 257", "line 258 has the token b'xxx")])
def test_a_tiktoken_file_that_does_not_fit_is_refused(line, reason, tmp_path):
    path = tmp_path / "cl100k_base.tiktoken"
    write_tiktoken(path, BPETokenizer(()))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(errors.TokenizerError) as error:
        load_tokenizer(path)
    assert reason in str(error.value) and len(str(error.value)) < 400


def test_npgpts_own_tokenizers_are_not_given_another_pattern(trained, tmp_path):
    trained.save(tmp_path)
    with pytest.raises(errors.TokenizerError, match="has its own pattern"):
        load_tokenizer(tmp_path, pattern="gpt2")
