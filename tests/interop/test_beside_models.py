"""What a model's files say beside the model goes along, into what is exported and what is fine-tuned."""

import json
from pathlib import Path

import pytest

from npgpt import GPT, BPETokenizer, GPTConfig
from npgpt.cli.main import main
from npgpt.training.finetuning import FinetuneConfig
from npgpt.training.loading import load_model
from npgpt.training.runs import create_run

TOKENS = {"<|endoftext|>": 256, "<|end|>": 257, "<|pad|>": 258}
LLAMA  = {"norm": "rmsnorm", "activation": "swiglu", "position": "rotary", "bias": False}


def write_folder(tokenizer_config, generation=None, config=None, **settings):
    """A model with the files that others would have beside it, in `model`."""
    model = GPT(GPTConfig(vocab_size=259, block_size=32, n_layer=1, n_head=2, n_embd=8, **settings))
    model.save_pretrained("model")
    BPETokenizer((), TOKENS).save("model")
    for name, entries in (("tokenizer_config", tokenizer_config), ("generation_config", generation)):
        path = Path(f"model/{name}.json")
        path.unlink()
        if entries is not None:
            path.write_text(json.dumps(entries))
    path = Path("model/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function that gives the folders into which `model` was written again."""
    monkeypatch.chdir(tmp_path)

    def write():
        assert main(["export", "model", "--out-dir", "exported"]) == 0
        Path("data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
        config = FinetuneConfig(model="model", data="data.jsonl", val_data="data.jsonl", batch_size=1)
        create_run(Path("run"), config, str, load_model(Path("model"), "best", "cpu", print))
        assert main(["export", "run/base", "--out-dir", "again"]) == 0
        return [Path("exported"), Path("run/base"), Path("again")]
    return write


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


GENERATION = {"eos_token_id": 257, "bos_token_id": 256, "do_sample": True, "temperature": 0.6, "top_k": 20}


def test_what_the_files_say_is_written_again_and_nothing_is_made_up(written):
    """Qwen's bos_token is null, though its vocabulary has <|endoftext|>."""
    write_folder({"bos_token": None, "eos_token": "<|end|>", "model_max_length": 77, "padding_side": "left",
                  "pad_token": {"content": "<|pad|>", "__type": "AddedToken"}, "clean_up": 3},
                 GENERATION, {"bos_token_id": 256, "pad_token_id": 258}, **LLAMA)
    for folder in written():
        said = read(folder, "tokenizer_config")
        assert said.items() >= {"eos_token": "<|end|>", "pad_token": "<|pad|>", "model_max_length": 77,
                                "padding_side": "left"}.items()
        assert not {"bos_token", "unk_token", "clean_up"} & said.keys()
        assert read(folder, "generation_config") == GENERATION
        config = read(folder, "config")
        assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (256, 257, 258)


def test_no_token_begins_a_text_where_the_files_name_none(written):
    write_folder({"eos_token": "<|end|>", "bos_token": ""}, {"eos_token_id": [257, 256]},
                 {"bos_token_id": None}, **LLAMA)
    for folder in written():
        assert "bos_token" not in read(folder, "tokenizer_config")
        assert read(folder, "config")["bos_token_id"] is None
        assert read(folder, "generation_config") == {"bos_token_id": None, "eos_token_id": [257, 256]}


@pytest.mark.parametrize(("said", "ends", "eos_token"), [
    ({}, [257, 256], "<|end|>"), ({"eos_token": "<|pad|>"}, [257, 256], "<|pad|>"), ({}, [259], None),
    ({}, None, "<|endoftext|>")])
def test_the_first_of_several_ends_is_named_where_the_tokenizers_files_do_not(written, said, ends, eos_token):
    write_folder(said | {"tokenizer_class": "PreTrainedTokenizerFast"}, {"eos_token_id": ends}, **LLAMA)
    loaded = load_model(Path("model"), "best", "cpu", print)
    assert loaded.eos_token_ids == tuple(ends or [256])
    assert loaded.named_tokens == ({"eos_token": eos_token} if eos_token else {})


def test_a_token_that_only_the_tokenizers_files_name_gets_its_number_in_the_models(written):
    write_folder({"bos_token": "<|pad|>", "eos_token": "<|end|>"}, {"eos_token_id": 257},
                 {"bos_token_id": None}, **LLAMA)
    for folder in written():
        assert read(folder, "config")["bos_token_id"] == 258
        assert read(folder, "generation_config") == {"bos_token_id": 258, "eos_token_id": 257}


@pytest.mark.parametrize("entries, settings, named", [
    (None, {}, True), ({"model_max_length": 9}, {}, True), ({"model_max_length": 9}, LLAMA, False),
    ({"tokenizer_class": "GPT2Tokenizer"}, LLAMA, True), ({"bos_token": "<|end|>"}, {}, True),
    ({"tokenizer_class": "PreTrainedTokenizerFast"}, {}, False)])
def test_gpt2s_tokenizer_has_one_token_for_all_if_its_files_do_not_say(entries, settings, named, written):
    write_folder(entries, {}, **settings)
    expected = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>") if named else {}
    expected |= {name: text for name, text in (entries or {}).items() if name == "bos_token"}
    transformers = pytest.importorskip("transformers")
    names  = ("bos_token", "eos_token", "unk_token", "pad_token")
    theirs = transformers.AutoTokenizer.from_pretrained("model")
    assert {name: getattr(theirs, name) for name in names if getattr(theirs, name)} == expected
    if not named:
        expected = {"eos_token": "<|endoftext|>"}                       # by npgpt's own tokenizer
    for folder in written():
        again = transformers.AutoTokenizer.from_pretrained(folder)
        assert {name: getattr(again, name) for name in names if getattr(again, name)} == expected


LISTED = {"added_tokens_decoder": {"257": {"content": "<|end|>", "special": True}}}


@pytest.mark.parametrize("listed", [{}, LISTED])
def test_special_tokens_map_goes_before_a_tokenizer_config_that_does_not_list_its_tokens(listed, written):
    entries = {"model_max_length": 9, "pad_token": "<|pad|>", "eos_token": "<|pad|>"}
    write_folder(entries | listed, GENERATION, **LLAMA)
    Path("model/special_tokens_map.json").write_text(json.dumps({
        "eos_token": {"content": "<|end|>"}, "bos_token": "<|endoftext|>"}))
    named = {"bos_token": "<|endoftext|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    if listed:
        named = {"eos_token": "<|pad|>", "pad_token": "<|pad|>"}
    for folder in (Path("model"), *written()):
        assert load_model(folder, "best", "cpu", print).named_tokens == named


@pytest.mark.parametrize("listed", [{}, LISTED])
def test_transformers_names_the_same_tokens(listed, written):
    """Also those of a model's own, which its chat template may write."""
    transformers = pytest.importorskip("transformers")
    write_folder({"model_max_length": 9, "eos_token": "<|pad|>", "pad_token": "<|pad|>",
                  "image_token": "<|end|>", "add_bos_token": True} | listed, GENERATION, **LLAMA)
    Path("model/special_tokens_map.json").write_text('{"eos_token": "<|end|>", "bos_token": "<|pad|>"}')
    theirs = transformers.AutoTokenizer.from_pretrained("model").special_tokens_map
    assert {"eos_token", "pad_token", "image_token"} <= theirs.keys()
    for folder in (Path("model"), *written()):
        assert load_model(folder, "best", "cpu", print).named_tokens == theirs
        assert transformers.AutoTokenizer.from_pretrained(folder).special_tokens_map == theirs


@pytest.mark.parametrize(("entries", "pad"), [({"pad_token": "<|pad|>"}, 258), ({}, 257)])
def test_of_a_classifier_padding_is_what_its_tokenizer_fills_up_with(written, entries, pad):
    """transformers reads the last token that is not config.json's pad_token_id."""
    write_folder(entries | {"eos_token": "<|end|>"}, GENERATION, {"pad_token_id": 258}, **LLAMA)
    Path("labels.jsonl").write_text("".join(f'{{"text": "{n}", "label": {n % 2}}}\n' for n in range(8)))
    config = FinetuneConfig(model="model", data="labels.jsonl", batch_size=1)
    create_run(Path("sorter"), config, str, load_model(Path("model"), "best", "cpu", print))
    assert main(["export", "sorter/base", "--out-dir", "sorting"]) == 0
    for folder in (Path("sorter/base"), Path("sorting")):
        assert read(folder, "config")["pad_token_id"] == pad
        text = read(folder, "tokenizer_config")["pad_token"]
        assert {"<|pad|>": 258, "<|end|>": 257}[text] == pad


def test_transformers_finds_again_what_it_wrote(written):
    transformers = pytest.importorskip("transformers")
    write_folder({"eos_token": "<|end|>", "pad_token": "<|pad|>"}, GENERATION, **LLAMA)
    theirs = transformers.AutoTokenizer.from_pretrained("model", model_max_length=30, padding_side="left")
    theirs.save_pretrained("model")
    settings = transformers.GenerationConfig.from_pretrained("model")
    settings.save_pretrained("model")
    for folder in written():
        again = transformers.AutoTokenizer.from_pretrained(folder)
        for name in ("bos_token", "eos_token", "unk_token", "pad_token", "model_max_length", "padding_side"):
            assert getattr(again, name) == getattr(theirs, name), name
        assert transformers.GenerationConfig.from_pretrained(folder).to_diff_dict() == settings.to_diff_dict()
