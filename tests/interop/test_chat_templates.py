"""A template writes the tokens that begin and end, as the model's own files name them: as in transformers, in
chat, in fine-tuning, and of what is exported.
"""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from npgpt import GPT, GPTConfig
from npgpt.cli.main import main
from npgpt.data.examples import encode_records
from npgpt.data.records import Dialogue, read_records
from npgpt.evaluation.prompts import render_for
from npgpt.generation.chat import Conversation
from npgpt.training.finetuning import FinetuneConfig
from npgpt.training.loading import load_model
from npgpt.training.runs import create_run

transformers = pytest.importorskip("transformers")
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

TEMPLATE = ("{{- bos_token }}{%- for m in messages %}"
            "{{- '<|h|>' + m['role'] + '<|/h|>' + m['content'] + eos_token + '\n' }}"
            "{%- endfor %}{%- if add_generation_prompt %}{{- '<|h|>assistant<|/h|>' }}{%- endif %}")
ASK  = [{"role": "user", "content": "hi"}]
TALK = [*ASK, {"role": "assistant", "content": "yo"}]


@pytest.fixture
def model(tmp_path):
    """The folder of a model in Llama 3's manner: several tokens end a text, the first of them no answer."""
    alphabet = {byte: id for id, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    pieces   = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder       = decoders.ByteLevel()
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token="<|begin|>", eos_token="<|eot|>",
        extra_special_tokens=["<|end|>", "<|h|>", "<|/h|>"])
    theirs.chat_template = TEMPLATE
    GPT(GPTConfig(vocab_size=len(theirs), block_size=64, n_layer=1, n_head=2, n_embd=8, norm="rmsnorm",
                  activation="swiglu", position="rotary", bias=False)).save_pretrained(tmp_path / "model")
    theirs.save_pretrained(tmp_path / "model")
    ends = {"bos_token_id": theirs.bos_token_id,
            "eos_token_id": [theirs.convert_tokens_to_ids("<|end|>"), theirs.eos_token_id]}
    for name in ("config.json", "generation_config.json"):
        path = tmp_path / "model" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | ends))
    return tmp_path / "model"


WITH_MORE = ("{%- for m in messages %}{{- '<|h|>' + m['role'] + '<|/h|>' }}"
             "{%- if m.role == 'assistant' %}{%- if m.reasoning_content is string %}"
             "{{- '(' + m.reasoning_content + ')' }}{%- endif %}{{- '[' + m.thinking + ']' if m.thinking }}"
             "{%- endif %}{{- m['content'] }}"
             "{%- if 'tool_calls' in m %}{{- m.tool_calls | tojson }}{%- endif %}"
             "{{- m.name if m.role == 'tool' }}{{- eos_token }}"
             "{%- endfor %}{%- if add_generation_prompt %}{{- '<|h|>assistant<|/h|>' }}{%- endif %}")


@pytest.mark.parametrize("answer", [
    {"reasoning_content": "hm"}, {"reasoning": "hm"}, {"thinking": "hm", "tool_calls": None},
    {"thinking": "hm", "reasoning": "no", "reasoning_content": None},
    {"thinking": "hm", "reasoning_content": "ah"},
    {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"ä": 1}}}]}])
def test_what_a_message_has_further_is_learned_as_transformers_writes_it(answer, model, tmp_path):
    """Thoughts and calls of tools, which would be lost from what the assistant says."""
    (model / "chat_template.jinja").write_text(WITH_MORE)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(model), load_model(model, "best", "cpu", print)
    talk = [*ASK, {"role": "assistant", "content": ""} | answer,
            {"role": "tool", "content": "5", "name": "f"}, {"role": "assistant", "content": "yo"}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": talk}))
    records     = read_records(tmp_path / "data.jsonl")
    render      = render_for(records, ours.chat_template, ours.named_tokens, ours.tokenizer)
    examples, _ = encode_records(records, ours.tokenizer, 200, [theirs.eos_token_id], render)
    assert examples.tokens.tolist() == theirs.apply_chat_template(talk, return_dict=False)
    said = theirs.decode(examples.tokens[examples.counted])
    assert said.count("<|eot|>") == 2 and ("hm" in said or '"ä": 1' in said) and said.endswith("yo<|eot|>")


FORGETFUL = ("{%- for m in messages %}{{- '<|h|>' + m['role'] + '<|/h|>' }}"
             "{{- '(hm)' if m['role'] == 'assistant' and loop.last }}{{- m['content'] + eos_token }}"
             "{%- endfor %}{%- if add_generation_prompt %}{{- '<|h|>assistant<|/h|>' }}{%- endif %}")


WITH_ALL = ("{{ bos_token is defined }}{{ pad_token }}{{ unk_token + sep_token + image_token }}"
            "{% if mask_token is not defined %}{{ messages[0].content }}{% endif %}")


def test_a_template_may_write_all_tokens_that_have_a_name(model):
    """And finds those undefined that have none, as in transformers."""
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict.fromkeys(
        ("pad_token", "unk_token", "image_token"), "<|h|>") | {"sep_token": "<|/h|>", "bos_token": None}))
    (model / "chat_template.jinja").write_text(WITH_ALL)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(model), load_model(model, "best", "cpu", print)
    expected = theirs.apply_chat_template(ASK, tokenize=False)
    assert expected == "False<|h|><|h|><|/h|><|h|>hi"
    records  = [Dialogue(tuple(TALK))]
    assert render_for(records, ours.chat_template, ours.named_tokens, ours.tokenizer)(ASK) == expected


def test_each_answer_is_learned_after_what_transformers_gives_the_model_then(model):
    """Of a template that forgets the thoughts before earlier answers, as Qwen3's does."""
    (model / "chat_template.jinja").write_text(FORGETFUL)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(model), load_model(model, "best", "cpu", print)
    talk     = [*TALK, {"role": "user", "content": "and?"}, {"role": "assistant", "content": "no"}]
    records  = [Dialogue(tuple(talk))]
    render   = render_for(records, ours.chat_template, ours.named_tokens, ours.tokenizer)
    examples, left_out = encode_records(records, ours.tokenizer, 64, [theirs.eos_token_id], render)
    assert not left_out and len(examples) == 2
    for n, (start, stop) in zip((1, 3), pairwise(examples.starts), strict=True):
        given = theirs.apply_chat_template(talk[:n], add_generation_prompt=True, return_dict=False)
        whole = theirs.apply_chat_template(talk[:n + 1], return_dict=False)
        assert examples.tokens[start:stop].tolist() == whole
        assert given == whole[:len(given)]
        assert not examples.counted[start:start + len(given)].any()
        assert examples.counted[start + len(given):stop].all()


def test_what_is_rendered_is_what_transformers_renders(model, tmp_path, monkeypatch):
    theirs  = transformers.AutoTokenizer.from_pretrained(model)
    asked   = theirs.apply_chat_template(ASK, add_generation_prompt=True, return_dict=False)
    told    = theirs.apply_chat_template(TALK, return_dict=False)
    begin   = theirs.bos_token_id
    assert asked[0] == told[0] == begin and told[-2] == theirs.eos_token_id
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(model), "--out-dir", "exported"]) == 0
    Path("talk.jsonl").write_text(2 * (json.dumps({"messages": TALK}) + "\n"))
    config = FinetuneConfig(model=str(model), data="talk.jsonl", val_data="talk.jsonl", batch_size=1)
    run    = create_run(Path("run"), config, str, load_model(model, "best", "cpu", print))
    assert run.train.tokens[:len(told)].tolist() == told
    assert theirs.decode(run.train.tokens[run.train.counted]) == 2 * "yo<|eot|>"       # and no line break
    assert main(["evaluate", str(model), "--data", "talk.jsonl", "--out", "result.json"]) == 0
    assert json.loads(Path("result.json").read_text())["protocol"]["tokens"] == 2 * len("yo.")
    for folder in (model, Path("exported"), Path("run/base")):
        loaded = load_model(folder, "best", "cpu", print)
        assert loaded.named_tokens == {"bos_token": "<|begin|>", "eos_token": "<|eot|>"}
        talk = Conversation(loaded.model, loaded.tokenizer, 64, loaded.chat_template, max_new_tokens=16,
                            named_tokens=loaded.named_tokens, eos_token_id=loaded.eos_token_ids)
        assert talk._prompt(ASK)[0] == asked
        records = [Dialogue(tuple(TALK))]
        render  = render_for(records, loaded.chat_template, loaded.named_tokens, loaded.tokenizer)
        examples, _ = encode_records(records, loaded.tokenizer, 64, loaded.eos_token_ids, render)
        assert examples.tokens.tolist() == told
        again = transformers.AutoTokenizer.from_pretrained(folder)
        assert (again.bos_token, again.eos_token) == ("<|begin|>", "<|eot|>")
        assert again.apply_chat_template(TALK, return_dict=False) == told
        assert json.loads((folder / "config.json").read_text())["bos_token_id"] == begin
