"""Models by their names on Hugging Face's hub. Nothing is fetched here: in the place of its client stands a
folder that lies as one in its cache.
"""

import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import commands
import fake_hub
import numpy as np
import pytest
import tiny
from model_folders import random_model, refused

import npgpt
from npgpt.cli.main import main
from npgpt.training.runs import read_config

TEXT = "to be or not to be, that is the question; to be or not to be is that\n"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """What was asked of it: (name, patterns)."""
    folder = tmp_path / "cache" / "models--gpt2" / "snapshots" / "0f"
    blobs  = folder.parent.parent / "blobs"
    tokenizer = npgpt.BPETokenizer.train([TEXT], 270)
    random_model(npgpt.GPTConfig(tokenizer.vocab_size, 12, 2, 2, 4)).save_pretrained(folder)
    tokenizer.save(folder)
    blobs.mkdir()
    (folder / "model.safetensors").rename(blobs / "77")
    (folder / "model.safetensors").symlink_to("../../blobs/77")
    return fake_hub.stand_in(monkeypatch, tmp_path, folder)


def names(hub):
    return [name for name, _ in hub]


def load(name):
    return lambda: npgpt.GPT.from_pretrained(name)


def test_a_name_is_fetched(hub, tmp_path, monkeypatch):
    assert npgpt.GPT.from_pretrained("a/b.c-d_e").config.n_layer == 2
    assert npgpt.GPT.from_pretrained("gpt2").config.n_layer == 2
    assert names(hub) == ["a/b.c-d_e", "gpt2"]
    read = {"config.json", "model.safetensors", "model.safetensors.index.json", "chat_template.jinja",
            "model-00001-of-00002.safetensors", "generation_config.json", "tokenizer.json", "vocab.json",
            "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
            "adapter_config.json"}
    others = {"pytorch_model.bin", "modeling.py", "README.md", "onnx/model.onnx"}
    assert {file for file in read | others for pattern in hub[0][1] if fnmatch(file, pattern)} == read
    refused(load("a/absent"), "a/absent is no folder here", "404 Client Error. (Request ID: 1) Repository")
    refused(load("a/silent"), "a/silent is no folder here", "TimeoutError")
    cached = tmp_path / "cache"
    for path in cached.rglob("config.json"):
        path.rename(path.with_name("adapter_config.json"))
    refused(load("a/adapter"), "a/adapter is an adapter alone (adapter_config.json)", "let PEFT merge them")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    count = len(hub)
    for path in ("runs/absent", "../x", "/a/b", "a/b/c", "a b", "-a/b", "a..b", "cache/x", "x.gguf", "./x",
                 Path("a/b")):
        refused(load(path), "is no folder: give that of a run")
    assert len(hub) == count
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(load("a/b"), "a/b is no folder here, and fetching a model of that name from Hugging Face's hub",
            "pip install 'npgpt[hub]'")


def test_the_hub_is_only_imported_when_it_is_needed():
    code = "import npgpt, sys; assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_command_takes_names(hub, capsys):
    Path("text.txt").write_text(TEXT * 9)
    model, tokenizer = npgpt.load("gpt2")
    assert tokenizer.vocab_size == model.config.vocab_size
    for command in (["sample", "gpt2", "--prompt", "to be", "--max-new-tokens", "2"],
                    ["evaluate", "gpt2", "--data", "text.txt", "--limit", "20"],
                    ["inspect", "gpt2", "--text", "to be", "--out", "page.html"],
                    ["export", "gpt2", "--out-dir", "out"],
                    ["finetune", "gpt2", "--data", "text.txt", "--max-iters", "1", "--batch-size", "2"]):
        hub.clear()
        assert main(command) == 0, command
        assert names(hub) == ["gpt2"], command
    np.testing.assert_array_equal(npgpt.GPT.from_pretrained("out").flat.data, model.flat.data)
    assert read_config(Path("runs/gpt2-finetuned")).model == "gpt2"
    commands.refused(capsys, 1, "gpt2 is not a run's folder, so it has no validation", "evaluate", "gpt2")


def test_what_is_here_or_meant_as_a_path_comes_first(hub, tmp_path, capsys, monkeypatch):
    Path("empty").mkdir()
    tiny.train_quietly(tiny.new_run(tmp_path / "here", "gpt2", max_iters=2))
    assert npgpt.load("gpt2")[0].config.block_size == tiny.SETTINGS["block_size"]
    commands.refused(capsys, 1, "empty is not a run's folder: it has no config.toml", "sample", "empty")
    for path in ("./absent", "absent/", "gpt2/absent", "absent.gguf"):
        commands.refused(capsys, 1, "absent.* is no folder: give that of a run, or of a model with a config"
                                    ".json and a model.safetensors, or a GGUF file", "sample", path)
    assert hub == []
    commands.refused(capsys, 1, "absent is no folder here, and a model of that name cannot be fetched from "
                                "Hugging Face's hub: 404", "sample", "absent")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    commands.refused(capsys, 1, "quick is no folder here, and fetching a model of that name from Hugging "
                                r"Face's hub takes huggingface_hub: pip install 'npgpt\[hub\]'",
                     "sample", "quick")
