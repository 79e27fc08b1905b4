"""A model whose tokenizer begins every text with a token, as Llama 3's does with <|begin_of_text|>: that one
stands before whatever the model is given, as in transformers, and is no part of what is measured.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path

import evaluating
import numpy as np
import pytest
from evaluating import nats, write_records
from tiny import train_quietly

from npgpt import GPT, GPTConfig
from npgpt.cli.main import main
from npgpt.data.records import Dialogue
from npgpt.errors import TokenizerError
from npgpt.evaluation.multiple_choice import encode_pair
from npgpt.evaluation.prompts import render_for
from npgpt.generation.chat import Conversation
from npgpt.interop.huggingface_writing import write_model, write_tokenizer
from npgpt.tokenizers import BPETokenizer, load_tokenizer
from npgpt.training.finetuning import FinetuneConfig
from npgpt.training.loading import load_classifier, load_model
from npgpt.training.runs import create_run

BEGIN, END, NAMES = 258, 257, {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
TALK = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"})


def tokenizer():
    return BPETokenizer([(220, 83)], {"<|end|>": END, "<|begin|>": BEGIN}, prefix_token="<|begin|>")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with such a model in it, `model`, whose weights are far from even."""
    monkeypatch.chdir(tmp_path)
    model = GPT(GPTConfig(vocab_size=259, block_size=32, n_layer=1, n_head=2, n_embd=8), seed=3)
    for parameter in model.parameters.values():
        parameter.data *= 5
    arrays = {name: parameter.data for name, parameter in model.parameters.items()}
    write_model("model", asdict(model.config), arrays, eos_token_ids=(END,), bos_token_id=BEGIN,
                beside=lambda path: write_tokenizer(path, tokenizer(), NAMES, None))
    return tmp_path


def loaded(name="model"):
    return load_model(Path(name), "best", "cpu", print)


def run(name, records, **settings):
    """A fine-tuning's run on the records, held to nothing."""
    Path(f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = FinetuneConfig(model="model", data=f"{name}.jsonl", val_data=f"{name}.jsonl", batch_size=1,
                            **settings)
    return create_run(Path(name), config, str, loaded())


def test_the_token_is_the_tokenizers_own_and_is_kept(folder):
    one = tokenizer()
    one.save("tokenizer")
    assert load_tokenizer("tokenizer").prefix == one.prefix == (BEGIN,)
    assert one.encode("to") == one.encode_ordinary("to") == [83, 78]             # it is no part of any text
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    assert load_tokenizer("tokenizer").prefix_token == "<|begin|>"                # by tokenizer.json alone
    assert load_tokenizer("tokenizer", special_tokens={"<|x|>": 257}).prefix == ()
    assert BPETokenizer([(220, 83)]).prefix == ()
    with pytest.raises(TokenizerError, match="prefix token '<s>' is none of the special tokens"):
        BPETokenizer([(220, 83)], prefix_token="<s>")


def test_transformers_puts_the_token_there_too(folder):
    transformers = pytest.importorskip("transformers")
    assert main(["export", "model", "--out-dir", "exported"]) == 0
    run("run", [{"prompt": "a", "completion": "b"}])
    for name in ("model", "exported", "run/base"):
        theirs = transformers.AutoTokenizer.from_pretrained(name)
        assert theirs("to be").input_ids == [BEGIN, *tokenizer().encode("to be")], name
        assert theirs("to", "be").input_ids == [BEGIN, 83, 78, BEGIN, 65, 68], name
        assert loaded(name).tokenizer.prefix == (BEGIN,)


@pytest.mark.parametrize("single", [
    "<|begin|>:0 $A:0", "<|begin|>:0 $A:0 <|end|>:0", "$A:0 <|end|>:0", "$A:0"])
def test_what_a_tokenizer_json_puts_before_a_text_is_the_prefix(single, folder):
    pytest.importorskip("tokenizers.processors")         # tests/tokenizers is called so, too
    import tokenizers
    tokenizer().save("tokenizer")
    theirs = tokenizers.Tokenizer.from_file("tokenizer/tokenizer.json")
    pieces, template = tokenizers.processors.ByteLevel(trim_offsets=False), \
        tokenizers.processors.TemplateProcessing(single, None, [("<|begin|>", BEGIN), ("<|end|>", END)])
    classic = [kind(("<|end|>", END), ("<|begin|>", BEGIN)) for kind in (
        tokenizers.processors.BertProcessing, tokenizers.processors.RobertaProcessing)]
    for processor in (template, tokenizers.processors.Sequence([pieces, template]),
                      *classic * (single == "<|begin|>:0 $A:0 <|end|>:0")):
        theirs.post_processor = processor
        theirs.save("tokenizer.json")
        ours = load_tokenizer("tokenizer.json")
        ids  = theirs.encode("to be").ids
        assert ids[:len(ours.prefix) + 5] == [*ours.prefix, *ours.encode("to be")]
        assert ours.prefix == ((BEGIN,) if single.startswith("<") else ())


def test_a_prompt_is_written_on_as_transformers_does(folder, capsys):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model  = transformers.AutoModelForCausalLM.from_pretrained("model")
    theirs = transformers.AutoTokenizer.from_pretrained("model")
    for prompt in ("to be", ""):
        ids = theirs(prompt).input_ids
        with torch.no_grad():
            new = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=END)
        capsys.readouterr()
        assert main(["sample", "model", "--prompt", prompt, "--max-new-tokens", "8", "--no-do-sample"]) == 0
        written = tokenizer().decode(new[0, len(ids):].tolist()).removesuffix("<|end|>")
        assert capsys.readouterr().out == f"{prompt}{written}\n"
        bare = loaded().model.generate(np.array([ids[1:] or [END]]), max_new_tokens=8)[0, len(ids[1:]) or 1:]
        assert bare.tolist() != new[0, len(ids):].tolist()                        # it does make a difference


def test_a_text_is_scored_after_the_token(folder):
    Path("text.txt").write_text("to be")
    ids    = [BEGIN, *tokenizer().encode("to be")]
    result = evaluating.evaluate("model", "--data", "text.txt")
    model  = loaded().model
    wanted = [nats(model, ids, 0, n) for n in range(1, len(ids))]
    assert result["protocol"]["first_token_follows"] == BEGIN and result["protocol"]["tokens"] == 5
    assert math.isclose(result["numbers"]["loss"], np.mean(wanted), rel_tol=1e-5)


def test_shards_have_the_token_and_are_cut_there(folder):
    Path("texts").mkdir()
    for n in range(40):
        Path(f"texts/{n}.txt").write_text(f"the text of number {n} is this")
    assert main(["prepare", "texts", "--out-dir", "prepared", "--tokenizer", "model", "--val-fraction", "0.3",
                 "--near-duplicates", "None"]) == 0
    prepared = evaluating.evaluate("model", "--data", "prepared")
    count    = prepared["protocol"]["documents"]
    assert 2 < count < 30 and prepared["protocol"]["tokens"] == prepared["protocol"]["bytes"] - 2 * count
    ours, _, before = tokenizer(), 0, np.fromfile(next(Path("prepared").glob("val*.bin")), np.uint16)
    texts = [text for n in range(40) if bytes(np.array([BEGIN, *ours.encode(text := (
        f"the text of number {n} is this"))], np.uint16)) in before.tobytes()]
    assert len(texts) == count
    write_records(*({"text": text} for text in texts))
    assert math.isclose(evaluating.evaluate("model", "--data", "records.jsonl")["numbers"]["loss"],
                        prepared["numbers"]["loss"], rel_tol=1e-6)


def test_what_is_learned_begins_with_the_token(folder):
    a, b = tokenizer().encode("aa"), tokenizer().encode("b")
    pair, empty, label = ({"prompt": "aa", "completion": "b"}, {"prompt": "", "completion": "b"},
                          {"text": "aa", "label": "x"})
    mixed = run("mixed", [pair, empty, {"text": "b"}])
    assert mixed.train.tokens.tolist() == [BEGIN, *a, *b, END, BEGIN, *b, END, BEGIN, *b, END]
    assert mixed.train.counted.tolist() == [False] * 3 + [True] * 2 + 2 * [False, True, True]
    assert run("labels", [label, {"text": "b", "label": "y"}]).train.tokens.tolist() == [BEGIN, *a, BEGIN, *b]
    texts = run("texts", [{"text": "aa"}] * 9, block_size=8, max_iters=1)
    train_quietly(texts)
    assert texts.train.tolist() == 9 * [BEGIN, *a, END]            # <|endoftext|> is no token of this model
    protocol = evaluating.evaluate("texts", "--stride", "8")["protocol"]
    assert (protocol["documents"], protocol["tokens"]) == (9, 9 * len(a))          # not what ends each


def test_a_classifier_reads_the_token_in_evaluation_as_in_training(folder):
    labels = [{"text": text, "label": label} for text, label in (("aa", "x"), ("b", "y"), ("cccc", "x"))]
    made   = run("run", labels, max_iters=1, eval_interval=1)
    train_quietly(made)
    write_records(*labels)
    assert main(["evaluate", "run", "--task", "classification", "--data", "records.jsonl", "--predictions",
                 "predictions.jsonl"]) == 0
    model, ours = load_classifier(Path("run"), "best", "cpu", print)
    for record, line in zip(labels, evaluating.lines_of("predictions.jsonl"), strict=True):
        ids    = np.array([[*ours.prefix, *ours.encode(record["text"])]])
        logits = model.forward(ids)[0][0]
        p      = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert np.allclose([line["probabilities"][label] for label in model.labels], p, rtol=1e-4)


def test_questions_prompts_and_talks_begin_with_the_token(folder, capsys):
    pytest.importorskip("jinja2")
    ours = tokenizer()
    assert encode_pair("to be", " or", ours) == ([BEGIN, *ours.encode("to be")], ours.encode(" or"))
    assert encode_pair("", "or", ours) == ([BEGIN], ours.encode("or"))
    said = "User: hi\nAssistant:"
    talk = Conversation(loaded().model, ours, 64, max_new_tokens=8)
    ids  = talk._prompt([TALK[0]])[0]
    assert ids == [BEGIN, *ours.encode(said)]
    render = render_for([Dialogue(TALK)], None, NAMES, ours)
    assert render(TALK[:1]) == "<|begin|>" + said
    told = run("talks", [{"messages": list(TALK)}])
    assert told.train.tokens[:len(ids)].tolist() == ids and loaded("talks/base").chat_template is not None
    write_records({"prompt": "to be", "completion": "x"})
    evaluating.evaluate("model", "--task", "generation", "--data", "records.jsonl", "--predictions",
                        "predictions.jsonl", "--max-new-tokens", "6")
    ids = np.array([[BEGIN, *ours.encode("to be")]])
    new = loaded().model.generate(ids, max_new_tokens=6, eos_token_id=END, pad_token_id=END)[0, ids.size:]
    written = ours.decode(id for id in new.tolist() if id != END)
    assert evaluating.lines_of("predictions.jsonl")[0]["written"] == written
    assert main(["inspect", "model", "--text", "to", "--out", "page.html"]) == 0
    assert "|begin|" in Path("page.html").read_text()
