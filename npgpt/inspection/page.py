"""A report as one HTML page that needs nothing else: style, script and numbers stand in the file.

Its content security policy allows this very style and script, by their hashes, and nothing else: no request
can leave the page, and nothing that a text or a token holds can run. The numbers are JSON in which every <, >
and & is escaped, and the script writes them as text, never as HTML. Matrices are bytes in base64.
"""

import base64
import hashlib
import html
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from npgpt.files import output_file
from npgpt.inspection.report import Report
from npgpt.inspection.token_names import token_name

SCRIPTS = ("page.js", "text.js", "lens.js", "attention.js")


def write_page(report: Report, path: Path) -> None:
    """Raises ConfigError if the file cannot be written."""
    page = make_page(report)
    with output_file(path, "w") as file:
        file.write(page)


def make_page(report: Report) -> str:
    """report: with the saliency of every position"""
    style  = _part("style.css")
    script = "\n".join(_part(name) for name in SCRIPTS)
    parts  = {"title": html.escape(f"npgpt inspect: {report.model}"), "style": style, "script": script,
              "style_hash": _hash(style), "script_hash": _hash(script),
              "data": to_script(page_data(report))}
    places = f"{{({'|'.join(parts)})}}"                                       # {title}, {style} …
    return re.sub(places, lambda found: parts[found[1]], _part("page.html"))


def page_data(report: Report) -> dict[str, Any]:
    """What the page's scripts read."""
    lens   = report.lens
    T      = len(report.tokens)
    ids    = sorted(report.names)
    index  = {id: n for n, id in enumerate(ids)}
    return {
        "model": report.model, "facts": report.facts, "notes": _notes(report), "target": report.target,
        "tokens": [_token(report, n) for n in range(T)],
        "guess":  {"name": report.name(T), "id": report.guess},
        "bits":   [0.0, *_rounded(lens.bits[-1], 3)],
        "lens": {
            "best":   lens.tokens.shape[-1],
            "names":  [report.names[id] for id in ids],
            "came":   [index[int(id)] for id in report.tokens],
            "top":    _packed(np.vectorize(index.__getitem__)(lens.tokens), "<u4"),
            "chance": _packed(np.round(lens.probability * 65535), "<u2"),
            "bits":   _rounded(lens.bits, 2),
            "rank":   lens.rank.tolist(),
        },
        "attention": {"layers": report.attention_layers, "heads": report.attention.shape[1],
                      "maps": _packed(_lower(np.round(report.attention * 255)), "u1")},
        "saliency": _saliency(report),
    }


def to_script(data: Any) -> str:
    """JSON that may stand inside <script>: no text can end it, or begin a comment or another one."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _token(report: Report, n: int) -> dict[str, Any]:
    data  = report.data[n]
    token = {"name": report.name(n), "id": int(report.tokens[n])}
    if not (data.isascii() and data.decode().isprintable()):
        token["bytes"] = data.hex(" ").upper()
    if report.cut[n]:
        token["cut"] = token_name(report.cut[n].encode())
    if b"\n" in data:
        token["breaks"] = True
    return token


def _saliency(report: Report) -> dict[str, Any]:
    """Each row as shares of its largest value: 0 to 255, or with a sign 128 ± 127."""
    packed: dict[str, Any] = {}
    for kind, values in report.saliency._asdict().items():
        most  = abs(values).max(-1, keepdims=True)                            # (N, 1)
        share = values / np.where(most == 0, 1, most)
        bytes_ = np.round(share * 255) if kind == "sensitivity" else 128 + np.round(share * 127)
        packed[kind] = _packed(_lower(bytes_), "u1")
        packed[f"{kind}_most"] = [float(f"{value:.4g}") for value in most[:, 0]]
    return packed


def _notes(report: Report) -> list[str]:
    left_out = report.n_layer - len(report.attention_layers)
    if not left_out:
        return []
    shown = ", ".join(map(str, report.attention_layers))
    note  = (f"To keep the file small, the attention maps of {left_out} of {report.n_layer} layers are left "
             f"out: shown are layers {shown}. A shorter text has room for more. All else is of all layers.")
    return [note]


def _lower(matrices: np.ndarray) -> np.ndarray:
    """(..., T, T) → (..., T (T + 1)/2): what stands on and below the diagonal, row by row"""
    rows, columns = np.tril_indices(matrices.shape[-1])
    return matrices[..., rows, columns]


def _packed(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode()


def _rounded(values: np.ndarray, digits: int) -> list[Any]:
    return np.round(values.astype(np.float64), digits).tolist()


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _part(name: str) -> str:
    return resources.files("npgpt.inspection").joinpath("page", name).read_text(encoding="utf-8")
