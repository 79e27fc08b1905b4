"""Models and tokenizers by name from Hugging Face's hub, through its own client, which keeps them in its
cache.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from npgpt.errors import NpgptError, shortened

ENDINGS = (".json", ".tiktoken", ".bpe", ".txt", ".gguf")     # a name that ends so is meant as a file's
NAME    = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def is_name(name: str | Path) -> bool:
    """Whether it can be a name there, "owner/name" or "name", and is no path here nor meant as one."""
    if not (isinstance(name, str) and NAME.fullmatch(name)) or ".." in name or name.endswith(ENDINGS):
        return False
    return ("/" not in name or not Path(name).parent.is_dir()) and not Path(name).exists()


def fetch(name: str, what: str, files: Sequence[str], refusal: type[NpgptError]) -> Path:
    """The folder with the files of a model or a tokenizer, fetched if they are not in the cache.

    what: "model" or "tokenizer".  files: names and patterns.  Raises refusal.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise refusal(f"{name} is no folder here, and fetching a {what} of that name from Hugging Face's hub "
                      "takes huggingface_hub: pip install 'npgpt[hub]'") from None
    try:
        return Path(huggingface_hub.snapshot_download(repo_id=name, allow_patterns=list(files)))
    except Exception as error:              # the network, the hub's answer, the disk: classes of its own
        reason = shortened(" ".join(str(error).split()), 300) or type(error).__name__
        raise refusal(f"{name} is no folder here, and a {what} of that name cannot be fetched from Hugging "
                      f"Face's hub: {reason}") from error
