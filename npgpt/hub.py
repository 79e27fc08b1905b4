"""Models and tokenizers by name from Hugging Face's hub, through its own client, which keeps them in its
cache.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from npgpt.errors import NpgptError

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def is_name(name: str | Path) -> bool:
    """Whether it can be a name there, "owner/name" or "name", and is no path here nor meant as one."""
    return isinstance(name, str) and bool(NAME.fullmatch(name)) and ".." not in name and \
        ("/" not in name or not Path(name).parent.is_dir()) and not Path(name).exists()


def fetch(name: str, what: str, files: Sequence[str], refusal: type[NpgptError]) -> Path:
    """The folder with the files of a model or a tokenizer, fetched if they are not in the cache.

    what: "model" or "tokenizer".  files: names and patterns.  Raises refusal.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise refusal(f"{name} is no folder, and fetching a {what} by name takes huggingface_hub: "
                      f"pip install 'npgpt[hub]', or give the folder of a {what}") from None
    try:
        return Path(huggingface_hub.snapshot_download(repo_id=name, allow_patterns=list(files)))
    except Exception as error:              # the network, the hub's answer, the disk: classes of its own
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise refusal(f"{name} is no folder, and it cannot be fetched as a {what} of that name: "
                      f"{reason}") from error
