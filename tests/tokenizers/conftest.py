"""Lets these tests import the helpers beside them; `tokenizers.…` would be Hugging Face's package."""

import sys
from pathlib import Path

import pytest

from npgpt.tokenizers import load_tokenizer

sys.path.insert(0, str(Path(__file__).parent))

GPT2_FILES = Path(__file__).parents[2].parent / "shared/data/gpt2"


@pytest.fixture(scope="session")
def gpt2():
    """npgpt's tokenizer and tiktoken's, each from GPT-2's own files."""
    if not (GPT2_FILES / "vocab.bpe").exists():
        pytest.skip("GPT-2's files are not here")
    pytest.importorskip("tiktoken")
    import tiktoken
    import tiktoken.load
    import tiktoken_ext.openai_public

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")
        ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(
            str(GPT2_FILES / "vocab.bpe"), str(GPT2_FILES / "encoder.json"))
    theirs = tiktoken.Encoding("gpt2", pat_str=tiktoken_ext.openai_public.r50k_pat_str, mergeable_ranks=ranks,
                               special_tokens={"<|endoftext|>": 50256})
    return load_tokenizer(GPT2_FILES), theirs
