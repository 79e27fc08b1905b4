"""A stand-in for the client of Hugging Face's hub: nothing is fetched, every name is that of one folder."""

import sys
import types


def stand_in(monkeypatch, tmp_path, folder):
    """From now on, in an empty folder as the current one.  folder: what lies there as in the client's cache.

    Returns what will have been asked of it: (name, patterns). It has nothing that is called absent, and of
    what is called silent no answer comes.
    """
    asked = []

    def snapshot_download(repo_id, allow_patterns):
        asked.append((repo_id, allow_patterns))
        if repo_id.endswith("absent"):
            raise ConnectionError("404 Client Error. (Request ID: 1)\n\nRepository Not Found\n" + "x" * 999)
        if repo_id.endswith("silent"):
            raise TimeoutError
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub",
                        types.SimpleNamespace(snapshot_download=snapshot_download))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return asked
