"""Models by name from Hugging Face's hub, through its own client, which keeps them in its cache."""

import re
from pathlib import Path

from npgpt.errors import CheckpointError
from npgpt.interop.safetensors_files import INDEX, MODEL

FILES = ["config.json", "generation_config.json", MODEL, INDEX, "model-*-of-*.safetensors", "tokenizer.json",
         "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
         "chat_template.jinja"]
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def is_name(name: str) -> bool:
    """Whether it can be a model's name there, "owner/name" or "name", and is not meant as a path here."""
    return bool(NAME.fullmatch(name)) and ".." not in name and \
        ("/" not in name or not Path(name).parent.is_dir())


def fetch(name: str) -> Path:
    """The folder with the files of a model, fetched if they are not in the cache. Raises CheckpointError."""
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError(f"{name} is no folder, and fetching a model by name takes huggingface_hub: "
                              "pip install 'npgpt[hub]', or give the folder of a model") from None
    try:
        return Path(huggingface_hub.snapshot_download(repo_id=name, allow_patterns=FILES))
    except Exception as error:              # the network, the hub's answer, the disk: classes of its own
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{name} is no folder, and it cannot be fetched as a model of that name: "
                              f"{reason}") from error
