import hashlib
import json
import random

import pytest

from npgpt import errors
from npgpt.tokenizers import BPETokenizer, CharacterTokenizer, formats, load_tokenizer
from npgpt.tokenizers.patterns import SPLIT_PATTERNS

CONFIG, VOCABULARY, MERGES = "tokenizer_config.json", "vocab.json", "merges.txt"
HUGGING_FACE = "tokenizer.json"
MIXED = ("Don't STOP: it's 12345 o'clock,  I'LL\r\n\r\n\tsee camelCase/paths... naïve 你好世界 Привет\n\n  "
         "١٢٣ a1b22c333 'tis\u3000x  \n") * 3
TEXT = "the cat sat on the mat — thé ## # \n\nthe end" * 3


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, CharacterTokenizer):
        return [a.decode([i]) for i in range(a.vocab_size)] == [b.decode([i]) for i in range(b.vocab_size)]
    return (a.merges, a.special_tokens, a.pattern) == (b.merges, b.special_tokens, b.pattern)


@pytest.fixture(params=["bpe", "bpe without special tokens", "character"])
def tokenizer(request):
    if request.param == "character":
        return CharacterTokenizer.train([TEXT + '"\\\x00\u2028😀'])
    special_tokens = ("<|endoftext|>", "<ü x>") if request.param == "bpe" else ()
    return BPETokenizer.train([TEXT], 290, special_tokens=special_tokens)


def test_what_is_saved_is_what_is_loaded(tokenizer, tmp_path):
    folder = tmp_path / "new" / "folder"
    tokenizer.save(folder)
    assert same(load_tokenizer(folder), tokenizer)
    assert same(type(tokenizer).load(str(folder)), tokenizer)
    assert load_tokenizer(folder).encode(TEXT) == tokenizer.encode(TEXT)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    load_tokenizer(folder).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    others = {MERGES, HUGGING_FACE} if isinstance(tokenizer, BPETokenizer) else set()
    assert set(before) == {CONFIG, VOCABULARY} | others


def test_the_files_are_laid_out_as_gpt2s(tmp_path):
    BPETokenizer([(220, 83), (256, 71), (2, 2)]).save(tmp_path)
    assert (tmp_path / MERGES).read_text("utf-8") == "#version: 0.2\nĠ t\nĠt h\n# #\n"
    vocabulary = json.loads((tmp_path / VOCABULARY).read_text("utf-8"))
    expected = {"!": 0, "~": 93, "¡": 94, "ÿ": 187, "Ā": 188, "Ġ": 220, "Ń": 255,
                "Ġt": 256, "Ġth": 257, "##": 258, "<|endoftext|>": 259}
    assert expected.items() <= vocabulary.items()
    assert list(vocabulary.values()) == list(range(260))


def test_any_ids_are_kept(tmp_path):
    """Ids in another order and with gaps, as others number theirs."""
    ours = BPETokenizer.train([TEXT], 290)
    other = {id: (7 * id + 3) % 997 + 5 for id in range(290)}
    moved = BPETokenizer([(other[left], other[right]) for left, right in ours.merges], {"<|endoftext|>": 2},
                         vocabulary={other[id]: data for id, data in ours.vocabulary.items()})
    assert moved.encode(TEXT) == [other[id] for id in ours.encode(TEXT)]
    assert moved.vocab_size == max(other[id] for id in ours.vocabulary) + 1 and moved.eos_token_id == 2
    moved.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert same(again, moved) and again.vocabulary == moved.vocabulary
    assert again.encode(TEXT) == moved.encode(TEXT) and again.decode(again.encode(TEXT)) == TEXT


@pytest.mark.parametrize("pattern", SPLIT_PATTERNS)
def test_hugging_face_reads_the_files_and_encodes_alike(pattern, tmp_path):
    pytest.importorskip("tokenizers.models")                # this folder is called "tokenizers" too
    import tokenizers

    ours = BPETokenizer.train([MIXED], 400, pattern)
    ours.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / HUGGING_FACE))
    assert theirs.encode(MIXED).ids == ours.encode(MIXED)
    assert theirs.decode(theirs.encode(MIXED).ids) == MIXED
    assert theirs.token_to_id("<|endoftext|>") == ours.eos_token_id
    assert theirs.get_added_tokens_decoder()[ours.eos_token_id].special
    assert load_tokenizer(tmp_path / HUGGING_FACE).pattern == pattern.replace("llama3", "cl100k")
    two_files = tokenizers.models.BPE.from_file(str(tmp_path / VOCABULARY), str(tmp_path / MERGES))
    theirs.model = two_files
    assert theirs.encode(MIXED).ids == ours.encode(MIXED)


def test_hugging_face_gives_special_tokens_their_ids_wherever_they_stand(tmp_path):
    """SmolLM's come first; others' have gaps before them or between."""
    pytest.importorskip("tokenizers.models")                # this folder is called "tokenizers" too
    import tokenizers
    vocabulary = {id + 5: data for id, data in BPETokenizer(()).vocabulary.items()}
    ours = BPETokenizer((), {"<first>": 0, "<last>": 300, "<gap>": 270}, vocabulary=vocabulary)
    ours.save(tmp_path)
    text = "a<last><first>b<gap>!"
    for theirs in (tokenizers.Tokenizer.from_file(str(tmp_path / HUGGING_FACE)),
                   pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)):
        encoded = theirs.encode(text)
        assert getattr(encoded, "ids", encoded) == ours.encode(text, allowed_special="all")
    assert load_tokenizer(tmp_path / HUGGING_FACE).special_tokens == ours.special_tokens


@pytest.mark.parametrize("where", ["there", "elsewhere"])
def test_what_transformers_read_and_saved_again_is_read_again(where, tmp_path):
    """It takes npgpt's own entries along, and writes other files."""
    transformers = pytest.importorskip("transformers")
    ours = BPETokenizer.train([TEXT], 290)
    ours.save(tmp_path / "there")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "there")
    theirs.add_special_tokens({"pad_token": "<pad>"})
    theirs.save_pretrained(tmp_path / where)
    assert json.loads((tmp_path / where / CONFIG).read_text())["kind"] == "bpe"
    again = load_tokenizer(tmp_path / where)
    assert again.special_tokens == {"<|endoftext|>": ours.eos_token_id, "<pad>": ours.vocab_size}
    assert again.encode(TEXT) == ours.encode(TEXT) == theirs.encode(TEXT)


@pytest.mark.parametrize("entry", [{"backend": "tokenizers"}, {"added_tokens_decoder": {}}])
def test_transformers_is_known_by_what_its_versions_write(entry, tmp_path):
    ours = BPETokenizer.train([TEXT], 290)
    ours.save(tmp_path)
    for name in (VOCABULARY, MERGES):
        (tmp_path / name).unlink()
    with pytest.raises(errors.TokenizerError, match="vocab.json is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / CONFIG).write_bytes(change_json(**entry)((tmp_path / CONFIG).read_bytes()))
    assert load_tokenizer(tmp_path).encode(TEXT) == ours.encode(TEXT)


# Damage

def change_json(**changes):
    """Sets entries of a JSON object; an entry set to ... is removed."""
    def change(data):
        entries = json.loads(data) | changes
        return json.dumps({key: value for key, value in entries.items() if value is not ...}).encode()
    return change


# (file, what happens to it, what the error says), for the merges Ġ+t = 256, Ġt+h = 257, #+# = 258
DAMAGE = {
    "empty config": (CONFIG, lambda data: b"", "not valid JSON"),
    "config cut short": (CONFIG, lambda data: data[:-9], "not valid JSON"),
    "config is a list": (CONFIG, lambda data: b"[1]", "what kind"),
    "no kind": (CONFIG, change_json(kind=...), "what kind"),
    "kind is no text": (CONFIG, change_json(kind=["bpe"]), "what kind"),
    "unknown kind": (CONFIG, change_json(kind="wordpiece"), "unknown kind 'wordpiece'"),
    "no version": (CONFIG, change_json(version=...), "version is None"),
    "version of the future": (CONFIG, change_json(version=2), "version is 2, and this npgpt reads version 1"),
    "version is true": (CONFIG, change_json(version=True), "version is True"),
    "unknown pattern": (CONFIG, change_json(pattern="(a+)+"), "pattern is '(a+)+'; the known ones are gpt2"),
    "no pattern": (CONFIG, change_json(pattern=...), "split pattern is None"),
    "pattern is a list": (CONFIG, change_json(pattern=["gpt2"]), "split pattern is ['gpt2']"),
    "no special tokens": (CONFIG, change_json(special_tokens=...), "special_tokens is not a list"),
    "special token twice": (CONFIG, change_json(special_tokens=["<e>", "<e>"]), "not a list of different"),
    "special token is a number": (CONFIG, change_json(special_tokens=[7]), "special_tokens is not a list"),
    "special token is a surrogate": (CONFIG, change_json(special_tokens=["\ud800"]), "not a list"),
    "ignore_merges is a number": (CONFIG, change_json(ignore_merges=1), "ignore_merges is 1, not true or"),
    "prefix_token is no special token": (CONFIG, change_json(prefix_token="a"), "prefix_token is 'a', which"),
    "prefix_token is a list": (CONFIG, change_json(prefix_token=["<e>"]), "prefix_token is ['<e>'], which"),
    "added_tokens is a text": (CONFIG, change_json(added_tokens="<e>"), "added_tokens is not a list of"),
    "a special token that is added": (CONFIG, change_json(added_tokens=["<e>"]), "'<e>' is one of special_"),
    "an added token without an id": (CONFIG, change_json(added_tokens=["<f>"]), "token '<f>' has no id"),
    "unknown normalizer": (CONFIG, change_json(normalizer="NFD"), "normalizer is 'NFD', and the known one"),
    "normalizer is a list": (CONFIG, change_json(normalizer=["NFC"]), "normalizer is ['NFC'], and the known"),
    "another tokenizer.json": (HUGGING_FACE, lambda data: data + b" ", "SHA-256"),
    "no sums": (CONFIG, change_json(sha256=...), "SHA-256"),
    "sums are no object": (CONFIG, change_json(sha256="x"), "SHA-256"),
    "config says a key twice": (CONFIG, lambda data: b'{"kind": 1, ' + data[1:], "'kind' comes twice"),
    "nested without end": (CONFIG, lambda data: b"[" * 200_000, "not valid JSON"),
    "number without end": (CONFIG, lambda data: b"9" * 10_000, "not valid JSON"),
    "not UTF-8": (VOCABULARY, lambda data: data.replace(b"!", b"\xff"), "not UTF-8 at byte 2"),
    "not JSON": (VOCABULARY, lambda data: data[:-5], "not valid JSON"),
    "vocabulary is a list": (VOCABULARY, lambda data: b"[]", "not a JSON object"),
    "empty vocabulary": (VOCABULARY, lambda data: b"{}", "not a JSON object"),
    "token twice": (VOCABULARY, lambda data: data.replace(b'"\\""', b'"!"'), "'!' comes twice"),
    "id twice": (VOCABULARY, change_json(a=65), "'a' and 'b' have the same id 65"),
    "id is text": (VOCABULARY, change_json(a="64"), "'a' has the id '64'"),
    "id is a fraction": (VOCABULARY, change_json(a=64.0), "'a' has the id 64.0"),
    "id is true": (VOCABULARY, change_json(**{'"': True}), "has the id True"),
    "id is negative": (VOCABULARY, change_json(a=-1), "'a' has the id -1"),
    "id is huge": (VOCABULARY, change_json(a=2**31), "'a' has the id 2147483648"),
    "a byte of a merge is exchanged": (VOCABULARY, change_json(t=..., xx=83), "line 2 joins 't', which has"),
    "a token not in bytes": (VOCABULARY, change_json(**{"▁x": 260}), "'▁x' is not written in GPT-2's"),
    "an empty token": (VOCABULARY, change_json(**{"": 260}), "'' is not written in GPT-2's"),
    "special token elsewhere": (VOCABULARY, change_json(**{"<e>": ..., "<f>": 259}), "'<e>' has no id"),
    "merges are not UTF-8": (MERGES, lambda data: data + b"\xc4", "not UTF-8"),
    "empty merges": (MERGES, lambda data: b"", "first line"),
    "no header": (MERGES, lambda data: data.split(b"\n", 1)[1], "first line is not '#version: 0.2'"),
    "merges cut short": (MERGES, lambda data: data[:-1], "middle of a line"),
    "a merge too many": (MERGES, lambda data: data + b"a b\n", "line 5 makes 'ab', which has no id"),
    "a merge twice": (MERGES, lambda data: data + b"# #\n", "line 5 joins '#' and '#' a second time"),
    "one token in a line": (MERGES, lambda data: data.replace(b"# #", b"##"), "line 4 is not two tokens"),
    "three tokens in a line": (MERGES, lambda data: data[:-1] + b" #\n", "line 4 is not two tokens"),
    "an empty line": (MERGES, lambda data: data.replace(b"# #", b""), "line 4 is not two tokens"),
    "Windows line ends": (MERGES, lambda data: data.replace(b"\n", b"\r\n"), "line 2 joins 't\\r'"),
    "merge of a later token": (MERGES, lambda data: data[:19] + b"## h\n# #\n", "line 3 makes '##h'"),
    "merge of an unknown token": (MERGES, lambda data: data[:19] + b"zz h\n# #\n", "line 3 joins 'zz'"),
    "merge of a special token": (MERGES, lambda data: data[:19] + b"<e> h\n# #\n", "line 3 joins '<e>'"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_files_that_do_not_fit_are_refused_even_with_the_right_sums(name, tmp_path):
    file, change, reason = DAMAGE[name]
    BPETokenizer([(220, 83), (256, 71), (2, 2)], special_tokens=["<e>"]).save(tmp_path)
    path = tmp_path / file
    path.write_bytes(change(path.read_bytes()))
    if file not in (CONFIG, HUGGING_FACE):
        renew_sums(tmp_path)
    with pytest.raises(errors.TokenizerError) as error:
        load_tokenizer(tmp_path)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(tuple(
        str(tmp_path / name) for name in (CONFIG, VOCABULARY, MERGES, HUGGING_FACE)))


LONG = "x" * 1000


@pytest.mark.parametrize("changes", [
    {"kind": LONG}, {"version": LONG}, {"pattern": LONG}, {"ignore_merges": LONG}, {"prefix_token": LONG},
    {"normalizer": LONG}, {"special_tokens": [LONG]}, {"special_tokens": [LONG], "added_tokens": [LONG]}])
def test_a_value_of_a_thousand_letters_is_not_repeated_whole(changes, tmp_path):
    BPETokenizer([]).save(tmp_path)
    (tmp_path / CONFIG).write_bytes(change_json(**changes)((tmp_path / CONFIG).read_bytes()))
    with pytest.raises(errors.TokenizerError) as error:
        load_tokenizer(tmp_path)
    assert "x" * 50 in str(error.value) and "x" * 100 not in str(error.value)


@pytest.mark.parametrize("file, change", [
    (VOCABULARY, change_json(a=..., xx=64)), (VOCABULARY, change_json(xyz=260)),
    (MERGES, lambda data: data[:-4])])
def test_a_token_that_no_merge_makes_is_damage_by_its_sum_alone(file, change, tmp_path):
    """Those of others have such tokens, and no byte of some."""
    BPETokenizer([(220, 83), (256, 71), (2, 2)], special_tokens=["<e>"]).save(tmp_path)
    path = tmp_path / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(errors.TokenizerError, match=f"{file} .*SHA-256"):
        load_tokenizer(tmp_path)
    renew_sums(tmp_path)
    assert load_tokenizer(tmp_path).encode(" th") == [257]


def renew_sums(folder):
    config = json.loads((folder / CONFIG).read_bytes())
    for name in config["sha256"]:
        config["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / CONFIG).write_text(json.dumps(config), "utf-8")


def test_the_order_in_vocab_json_does_not_matter(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    vocabulary = json.loads((tmp_path / VOCABULARY).read_bytes())
    (tmp_path / VOCABULARY).write_text(json.dumps(dict(reversed(vocabulary.items()))), "utf-8")
    renew_sums(tmp_path)
    assert same(load_tokenizer(tmp_path), tokenizer)


@pytest.mark.parametrize("vocabulary, reason", [
    ({"ab": 0}, "'ab' is not one character"), ({"": 0}, "'' is not one character"),
    ({"\ud800": 0}, "is not one character"), ({"a": 1}, "'a' has the id 1"), ({}, "not a JSON object")])
def test_characters_that_do_not_fit_are_refused_even_with_the_right_sums(vocabulary, reason, tmp_path):
    CharacterTokenizer("abc").save(tmp_path)
    (tmp_path / VOCABULARY).write_text(json.dumps(vocabulary), "utf-8")
    renew_sums(tmp_path)
    with pytest.raises(errors.TokenizerError) as error:
        load_tokenizer(tmp_path)
    assert reason in str(error.value)
    assert str(tmp_path / VOCABULARY) in str(error.value)


def test_every_flipped_byte_and_every_truncation_is_refused_or_harmless(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    chance = random.Random(0)
    refused = 0
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        places = sorted(chance.sample(range(len(data)), min(len(data), 80)))
        flipped = [data[:i] + bytes([data[i] ^ 1 << chance.randrange(8)]) + data[i + 1:] for i in places]
        for damaged in [*flipped, *(data[:i] for i in places)]:
            path.write_bytes(damaged)
            try:
                assert same(load_tokenizer(tmp_path), tokenizer)        # white space in the config
            except errors.TokenizerError as error:
                assert str(tmp_path) in str(error)
                refused += 1
            else:
                assert path.name == CONFIG
        path.write_bytes(data)
    assert refused > 200


def test_a_save_cut_short_leaves_no_mixture_of_two_tokenizers(tokenizer, tmp_path, monkeypatch):
    character = isinstance(tokenizer, CharacterTokenizer)
    other = CharacterTokenizer("xyz") if character else BPETokenizer([(64, 65)])
    real = formats.atomic_write
    for survived in range(4):
        folder = tmp_path / str(survived)
        tokenizer.save(folder)
        written = []

        def fails_after(path, written=written, survived=survived):
            if len(written) == survived:
                raise OSError(28, "No space left on device")
            written.append(path.name)
            return real(path)

        monkeypatch.setattr(formats, "atomic_write", fails_after)
        try:
            other.save(folder)
        except errors.TokenizerError as error:
            assert "No space left on device" in str(error) and str(folder) in str(error)
            monkeypatch.setattr(formats, "atomic_write", real)
            if written:
                with pytest.raises(errors.TokenizerError, match="not the file that was saved with"):
                    load_tokenizer(folder)
            else:
                assert same(load_tokenizer(folder), tokenizer)
        else:
            assert same(load_tokenizer(folder), other)
        monkeypatch.setattr(formats, "atomic_write", real)


def test_what_is_missing_is_named(tokenizer, tmp_path):
    with pytest.raises(errors.TokenizerError, match=f"nowhere/{CONFIG} is missing"):
        load_tokenizer(tmp_path / "nowhere")
    tokenizer.save(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        path.unlink()
        if path.name == CONFIG and isinstance(tokenizer, BPETokenizer):
            assert same(load_tokenizer(tmp_path), tokenizer)                # by tokenizer.json
            path.write_bytes(data)
            continue
        with pytest.raises(errors.TokenizerError, match=f"{path.name} is missing"):
            load_tokenizer(tmp_path)
        path.mkdir()
        with pytest.raises(errors.TokenizerError, match=f"{path.name} cannot be read: Is a directory"):
            load_tokenizer(tmp_path)
        path.rmdir()
        path.write_bytes(data)


def test_a_folder_that_cannot_be_written_is_named(tokenizer, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(errors.TokenizerError, match=r"cannot be written to .*/file/x: Not a directory"):
        tokenizer.save(tmp_path / "file" / "x")


def test_a_class_reads_only_its_own_kind(tmp_path):
    CharacterTokenizer("abc").save(tmp_path)
    with pytest.raises(errors.TokenizerError, match="of kind 'character', not 'bpe'"):
        BPETokenizer.load(tmp_path)
