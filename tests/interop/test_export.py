"""Model folders written, and the commands that read and write models."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from commands import said_by
from model_folders import (
    gpt2_arrays,
    random_model,
    write_folder,
    write_shards,
    write_tensors,
)

import npgpt
from npgpt.cli.main import main
from npgpt.errors import CheckpointError, ConfigError, TokenizerError
from npgpt.interop import huggingface_writing
from npgpt.interop.beside_models import read_chat_template, read_ends
from npgpt.tokenizers.patterns import SPLIT_PATTERNS
from npgpt.training.loading import load_model, load_run


def load(folder):
    return lambda: npgpt.GPT.from_pretrained(folder)


# Writing

def test_a_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    model = random_model(npgpt.GPTConfig(11, 6, 2, 2, 4))
    path  = tmp_path / "new" / "model"
    real  = huggingface_writing.write_json
    for survived in range(3):
        left = [survived]

        def fails(file, content, left=left):
            if not left[0]:
                raise OSError(28, "No space left on device")
            left[0] -= 1
            real(file, content)

        monkeypatch.setattr(huggingface_writing, "write_json", fails)
        with pytest.raises(CheckpointError, match="cannot save the model to .*: No space left"):
            model.save_pretrained(path, max_shard_size=500)
        assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.setattr(huggingface_writing, "write_json", real)
    model.save_pretrained(path, max_shard_size=500)
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors.index.json"} < files.keys()
    assert [file.name for file in path.parent.iterdir()] == ["model"]
    total = json.loads(files["model.safetensors.index.json"])["metadata"]["total_size"]
    assert total == model.flat.size * 4
    for file, content in files.items():
        assert not file.endswith(".safetensors") or len(content) < 500 + 1500
        assert not file.endswith(".safetensors") or b'"__metadata__": {"format": "pt"}' in content

    with pytest.raises(CheckpointError, match="already holds a config.json"):
        model.save_pretrained(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == files
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(CheckpointError, match="cannot save"):
            model.save_pretrained(wrong)


def test_a_folder_that_holds_something_else_is_added_to(tmp_path):
    model = random_model(npgpt.GPTConfig(260, 6, 1, 2, 4))
    npgpt.BPETokenizer.train(["abc"], 258).save(tmp_path / "x")
    (tmp_path / "x" / "model.safetensors").write_text("of a save that was cut short")
    model.save_pretrained(tmp_path / "x")
    np.testing.assert_array_equal(npgpt.GPT.from_pretrained(tmp_path / "x").flat.data, model.flat.data)
    assert npgpt.load_tokenizer(tmp_path / "x").vocab_size == 258
    (tmp_path / "empty").mkdir()
    model.save_pretrained(tmp_path / "empty")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("settings, words", [
    ({"dtype": "int8"}, "dtype must be float64, float32, float16, bfloat16, not 'int8'"),
    ({"max_shard_size": "5 parsecs"}, "max_shard_size"), ({"max_shard_size": 0}, "max_shard_size"),
    ({"max_shard_size": "-1"}, "max_shard_size"), ({"max_shard_size": 1.5}, "max_shard_size")])
def test_wrong_settings_of_saving(settings, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        random_model(npgpt.GPTConfig(11, 6, 1, 2, 4)).save_pretrained(tmp_path / "x", **settings)
    assert not list(tmp_path.iterdir())


def test_what_float16_cannot_hold_is_not_saved(tmp_path):
    model = random_model(npgpt.GPTConfig(11, 6, 1, 2, 4))
    model.parameters["h.0.mlp.c_fc.bias"].data[3] = 7e4
    with pytest.raises(CheckpointError, match="transformer.h.0.mlp.c_fc.bias holds 70000, which is beyond"):
        model.save_pretrained(tmp_path / "x", dtype="float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size, files", [("1KB", 3), (" 1 kb", 3), ("3KB", 1), (10**9, 1), ("1 MB", 1), (1,
                                                                                                         28)])
def test_sizes_of_files(size, files, tmp_path):
    units = ("", "kB", "MB", "GB", "KiB", "MiB", "GiB")
    assert [huggingface_writing._bytes(f"2{unit}") for unit in units] == [
        2, 2000, 2 * 10**6, 2 * 10**9, 2**11, 2**21, 2**31]
    random_model(npgpt.GPTConfig(11, 6, 2, 2, 4)).save_pretrained(tmp_path / "x", "float32", size)
    assert len(list((tmp_path / "x").glob("*.safetensors"))) == files


@pytest.mark.parametrize(("kind", "dtype", "said"), [
    ("float32", None, "float32"), ("float64", None, "float64"), ("float64", "bfloat16", "bfloat16")])
def test_the_type_of_the_numbers_is_told_and_one_file_has_no_index(kind, dtype, said, tmp_path):
    random_model(npgpt.GPTConfig(11, 6, 1, 2, 4), kind).save_pretrained(tmp_path / "x", dtype)
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"config.json", "generation_config.json",
                                                                  "model.safetensors"}
    assert json.loads((tmp_path / "x" / "config.json").read_text())["torch_dtype"] == said


@pytest.mark.parametrize(("options", "said"), [
    ({}, {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.3}),
    ({"norm": "rmsnorm", "activation": "swiglu", "position": "rotary", "bias": False},
     {"attention_dropout": 0.3})])
def test_dropout_is_told_and_read_again(options, said, tmp_path):
    config = npgpt.GPTConfig(11, 6, 1, 2, 4, dropout=0.2, attention_dropout=0.3, **options)
    random_model(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).items() >= said.items()
    back = npgpt.GPT.from_pretrained(tmp_path).config
    assert (back.dropout, back.attention_dropout) == (0.0 if options else 0.2, 0.3)     # a Llama has but one


# Commands

@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_text(tmp_path)
    flags = [*tiny.FLAGS, "--tokenizer", "bpe", "--vocab-size", "300", "--max-iters", "2", "--out-dir", "run"]
    assert main(["train", "--data", "text.txt", *flags]) == 0
    return tmp_path / "run"


def test_a_run_is_exported_and_sampled_from_like_the_run(run, capsys):
    assert main(["export", "run", "--out-dir", "out", "--max-shard-size", "5KB"]) == 0
    assert len(list(Path("out").glob("model-*"))) > 1
    assert main(["export", "out", "--out-dir", "half", "--dtype", "bfloat16"]) == 0
    texts = []
    for source in ("run", "out", "half"):
        capsys.readouterr()
        assert main(["sample", source, "--prompt", "to be", "--max-new-tokens", "9", "--no-do-sample"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[2].startswith("to be")
    ours, tokenizer, checkpoint = load_run(run, "best", "cpu", print)
    back, again, ends, template, *_ = load_model(Path("out"), "best", "cpu", print)
    assert checkpoint.step == 2 and ends == (tokenizer.eos_token_id,) and template is None
    assert again.vocab_size == tokenizer.vocab_size
    np.testing.assert_array_equal(ours.flat.data, back.flat.data)
    end = json.loads(Path("out/generation_config.json").read_text())["eos_token_id"]
    assert end == tokenizer.eos_token_id == json.loads(Path("out/config.json").read_text())["eos_token_id"]


def test_transformers_reads_what_is_exported(run):
    transformers = pytest.importorskip("transformers")
    assert main(["export", "run", "--out-dir", "out"]) == 0
    model, tokenizer = (kind.from_pretrained("out") for kind in (transformers.AutoModelForCausalLM,
                                                                 transformers.AutoTokenizer))
    ours, own, *_ = load_model(run, "best", "cpu", print)
    text = "To be, or not to be: 12345's the question\n\n  <|endoftext|> äöü 日本"
    ids  = tokenizer(text)["input_ids"]
    assert ids == own.encode(text, allowed_special="all") and tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == own.eos_token_id == model.generation_config.eos_token_id
    prompt = tokenizer("to be", return_tensors="pt")["input_ids"]
    logits = model(prompt).logits.detach().numpy()
    np.testing.assert_allclose(ours.forward(prompt.numpy())[0], logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "mistral", "qwen3", "npgpt"])
@pytest.mark.parametrize("pattern", SPLIT_PATTERNS)
def test_transformers_splits_text_as_the_tokenizer_beside_the_model_does(pattern, model_type, tmp_path):
    """And not as the family usually does: numbers, marks and capitals are where the patterns differ."""
    transformers = pytest.importorskip("transformers")
    text = "The cat's 12345, DON'T... äöü 日本語 double  spaces\n\n\ttab <|endoftext|>x HTTPServer 3.14"
    ours = npgpt.BPETokenizer.train([text * 3], 420, pattern)
    ours.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text)["input_ids"] == ours.encode(text, allowed_special="all")
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert theirs.eos_token_id == theirs.bos_token_id == ours.eos_token_id and len(theirs) == ours.vocab_size
    npgpt.BPETokenizer.train([text], 300, pattern, special_tokens=()).save(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).eos_token is None


def test_what_is_wrong_is_told_in_one_line(run, capsys):
    assert "out_dir" in said_by(capsys, 2, "export", "run").replace("-", "_")
    assert "no checkpoint '7'" in said_by(capsys, 1, "export", "run", "--out-dir", "o", "--checkpoint", "7")
    assert "dtype must be" in said_by(capsys, 1, "export", "run", "--out-dir", "o", "--dtype", "int4")
    assert "max_shard_size" in said_by(capsys, 1, "export", "run", "--out-dir", "o", "--max-shard-size", "x")
    assert "absent is no folder here" in said_by(capsys, 1, "export", "absent", "--out-dir", "o")
    assert "absent is no folder" in said_by(capsys, 1, "sample", run.parent / "absent")
    assert main(["export", "run", "--out-dir", "out"]) == 0
    assert "already holds a config.json" in said_by(capsys, 1, "export", "run", "--out-dir", "out")
    config = Path("out/config.json")
    sound  = config.read_text()
    for command in (["sample", "out"], ["export", "out", "--out-dir", "o"]):
        config.write_text(sound.replace('"gpt2"', '"mamba"'))
        assert "out/config.json cannot be used: its model_type is 'mamba'" in said_by(capsys, 1, *command)
        config.write_text(sound.replace('"n_layer": 2', '"n_layer": 3'))
        assert "out has no tensor transformer.h.2.ln_1.weight" in said_by(capsys, 1, *command)
        config.write_text(sound)
        content = Path("out/model.safetensors").read_bytes()
        for damaged in (b"", content[:-1], content[:100], b"\xff" * 100):
            Path("out/model.safetensors").write_bytes(damaged)
            assert "model.safetensors cannot be used" in said_by(capsys, 1, *command)
        Path("out/model.safetensors").write_bytes(content)
    for name in ("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt"):
        Path("out", name).unlink()
    assert "tokenizer_config.json is missing" in said_by(capsys, 1, "sample", "out")
    with pytest.raises(TokenizerError):
        load_model(Path("out"), "best", "cpu", print)
    assert not Path("o").exists()


def test_nothing_that_is_there_is_written_over(run, capsys):
    checkpoint = next(Path("run/checkpoints").iterdir())
    shutil.copytree("run/tokenizer", "tokenizer")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for folder, sentence in (("run", "run holds a run: choose another --out-dir"),
                             ("tokenizer", "tokenizer already holds a merges.txt: choose another --out-dir"),
                             (checkpoint, f"{checkpoint} holds a checkpoint of a run")):
        assert sentence in said_by(capsys, 1, "export", "run", "--out-dir", folder)
        assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    Path("out").mkdir()
    Path("out/README.md").touch()
    assert main(["export", "run", "--out-dir", "out"]) == 0 and Path("out/README.md").exists()


def test_a_run_that_no_family_holds_is_not_exported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.write_text(tmp_path)
    flags = [*tiny.FLAGS, "--position", "sinusoidal", "--max-iters", "1", "--out-dir", "run"]
    assert main(["train", "--data", "text.txt", *flags]) == 0
    assert "position = 'sinusoidal' cannot be exported" in said_by(capsys, 1, "export", "run", "--out-dir",
                                                                   "out")
    assert not Path("out").exists()


def test_shards_by_hand_are_found_from_the_command(tmp_path, capsys):
    folder = write_folder(tmp_path / "x")
    index  = write_shards(folder, gpt2_arrays())
    npgpt.BPETokenizer.train(["abc"], 257).save(folder)
    index["weight_map"]["transformer.wte.weight"] = "../../etc/passwd"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "'../../etc/passwd', which is not inside the folder" in said_by(capsys, 1, "sample", folder)
    write_tensors(folder / "model.safetensors", gpt2_arrays())
    assert "not in the vocabulary" in said_by(capsys, 1, "sample", folder, "--prompt", "abc")


@pytest.mark.parametrize(("said", "ends"), [(0, (0,)), ([3, 0], (3, 0)), (None, (2,)), ([], (2,))])
def test_what_ends_a_text_is_read_from_generation_config_and_else_from_config(tmp_path, said, ends):
    assert read_ends(tmp_path) == ()
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": said}))
    assert read_ends(tmp_path) == ends


@pytest.mark.parametrize("wrong", ["2", -1, 2.5, True, [1, None], {}])
def test_an_end_that_is_no_token_is_refused(tmp_path, wrong):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
    with pytest.raises(CheckpointError, match=r"generation_config.json cannot be used: its eos_token_id"):
        read_ends(tmp_path)


def test_a_chat_template_stands_in_its_own_file_or_in_the_tokenizers(tmp_path):
    assert read_chat_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    for template, found in (("a", "a"), ([{"name": "rag", "template": "r"}, {"name": "default",
                                                                            "template": "d"}], "d"),
                            ({"rag": "r", "default": "d"}, "d"), ("", ""), (None, None)):
        config.write_text(json.dumps({"chat_template": template}))
        assert read_chat_template(tmp_path) == found
    (tmp_path / "chat_template.jinja").write_text("own")
    assert read_chat_template(tmp_path) == "own"
    for template, words in (([{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}],
                             r"the chat templates \['rag', 'tool_use'\] and none called default: put the"),
                            ({"rag": "r"}, r"the chat templates \['rag'\]"), ([], r"the chat templates \[\]"),
                            (7, "its chat_template is 7, which is no text")):
        config.write_text(json.dumps({"chat_template": template}))
        assert read_chat_template(tmp_path) == "own"
        (tmp_path / "chat_template.jinja").unlink()
        with pytest.raises(CheckpointError, match=f"tokenizer_config.json cannot be used: .*{words}"):
            read_chat_template(tmp_path)
        (tmp_path / "chat_template.jinja").write_text("own")
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template.jinja cannot be used: .*utf-8"):
        read_chat_template(tmp_path)


def test_npgpt_load_reads_runs_and_models_alike(run, tmp_path):
    model, tokenizer = npgpt.load(run)
    assert main(["export", str(run), "--out-dir", str(tmp_path / "model")]) == 0
    other, others = npgpt.load(str(tmp_path / "model"))
    ids = np.array([tokenizer.encode("to be")])
    assert others.encode("to be") == ids[0].tolist()
    assert np.array_equal(model.forward(ids)[0], other.forward(ids)[0])
    with pytest.raises(CheckpointError, match="is a run's folder, which npgpt.load reads"):
        npgpt.GPT.from_pretrained(run)
