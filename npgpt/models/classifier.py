"""A GPT that tells which of several kinds a text is (Radford et al. 2018): one linear map of what stands at
the text's last token, the only place that has seen all of it.

    x = decoder(tokens)        logits = x[last] W        W: (C, n_labels), transformers' score
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from npgpt.errors import ConfigError, DataError
from npgpt.interop.classifiers import Labels
from npgpt.interop.huggingface import find_folder, read_classifier
from npgpt.interop.huggingface_writing import write_model
from npgpt.layers import Linear, lora_layers
from npgpt.models.config import GPTConfig
from npgpt.models.decoder import IGNORE_INDEX, SAVE_INSTEAD, Decoder, take
from npgpt.models.gpt import GPT
from npgpt.ops.cross_entropy import cross_entropy_backward, cross_entropy_forward
from npgpt.tensor import array_module, to_device, to_numpy


class SequenceClassifier(Decoder):
    """tokens: integers (B, T), T ≤ block_size.  `forward` gives logits, `loss` their cross-entropy.

    labels: the names of the kinds, in the order of the logits.  key, attention_mask: as in Decoder; the last
    token of a row is the last that is not masked, whichever side is padded.
    pad_token_id: what transformers is to take for padding in a saved model; npgpt goes by the mask alone.
    """

    def __init__(self, config: GPTConfig, labels: Sequence[str], seed: int | None = 1337,
                 device: str = "cpu", dtype: str = "float32", pad_token_id: int | None = None):
        if not isinstance(labels, Sequence) or len(labels) < 2 or len(set(labels)) < len(labels) \
                or not all(isinstance(label, str) for label in labels):
            raise ConfigError(f"a classifier takes at least 2 labels, each another text: not {labels!r}")
        super().__init__(config)
        self.labels, self.pad_token_id = tuple(labels), pad_token_id
        self.score = Linear(config.n_embd, len(labels), bias=False)
        self.initialise(seed, device, dtype)

    @classmethod
    def from_gpt(cls, gpt: GPT, labels: Sequence[str], seed: int = 1337) -> "SequenceClassifier":
        """A classifier with a copy of the GPT's body and a fresh head. Raises ConfigError."""
        if lora_layers(gpt):
            raise ConfigError("the GPT has LoRA: merge that into its weights, then make a classifier of it")
        gpt.check_as_configured("make the classifier a Module of your own, with the GPT in it")
        device, dtype = gpt.flat.device, str(gpt.flat.data.dtype)
        model = cls(gpt.config, labels, None, device, dtype)
        body  = gpt.parameters
        for name, parameter in model.parameters.items():
            parameter.data[...] = body[name].data if name in body else \
                to_device(parameter.initial(seed, name).astype(dtype), device)
        return model

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path, device: str = "cpu",
                        dtype: str = "float32") -> "SequenceClassifier":
        """The …ForSequenceClassification in a Hugging Face folder, or of that name on the hub.

        Raises ConfigError, CheckpointError, naming file and entry or tensor.
        """
        config, labels, tensors = read_classifier(find_folder(path_or_name), GPTConfig)
        model = cls(config, labels.names, None, device, dtype, labels.pad_token_id)
        model.flat.load(tensors)
        return model

    def save_pretrained(self, path: str | Path, dtype: str | None = None,
                        max_shard_size: int | str = "5GB") -> None:
        """Writes such a folder, whole or not at all. dtype, max_shard_size: see `write_model`.

        Raises ConfigError for a model with parts of your own, of which no such folder tells.
        """
        self.check_as_configured(SAVE_INSTEAD)
        arrays = {name: parameter.data for name, parameter in self.parameters.items()}
        write_model(path, asdict(self.config), arrays, dtype, max_shard_size,
                    labels=Labels(self.labels, self.pad_token_id))

    def _head_shapes(self):
        return {"score.weight": (self.config.n_embd, len(self.labels))}

    def forward(self, tokens, key=None, attention_mask=None):
        """tokens: (B, T), or embeddings  →  logits: (B, n_labels), saved for `backward_logits`"""
        tokens  = self.checked(tokens)
        last    = self._last(tokens.shape[:2], attention_mask)                # (B,)
        x, body = self.body_forward(tokens, key, None, attention_mask)        # (B, T, C)
        logits, head = self.score.forward(x[array_module(x).arange(len(x)), last])
        return logits, ["forward", body, (head, last, x.shape), (logits.shape, logits.dtype)]

    def backward_logits(self, dlogits, saved, after_block=None):
        """dlogits: (B, n_labels), saved: from `forward`, which is used up.  Adds to every gradient.

        after_block, what is returned: as `body_backward`.  Raises DataError for dlogits of another shape.
        """
        self.flat.make_current()
        body, (head, last, shape), like = take(saved, "forward")
        dlogits = self.checked_gradient(dlogits, like, "dlogits")
        xp = array_module(dlogits)
        dx = xp.zeros(shape, dlogits.dtype)                                   # no other place is read
        dx[xp.arange(len(dx)), last] = self.score.backward(dlogits, head)
        return self.body_backward(dx, body, after_block)

    def loss(self, tokens, targets, key=None, num_items_in_batch: int | None = None, attention_mask=None):
        """tokens: (B, T)  targets: numbers of labels, (B,)  →  mean cross-entropy: 0-d, nats; for `backward`

        Targets of −100 do not count.  num_items_in_batch: what to divide the sum by, as in GPT.loss.
        """
        logits, saved = self.forward(tokens, key, attention_mask)
        targets = self._checked_targets(targets, len(logits))
        loss, s = cross_entropy_forward(logits, targets, num_items_in_batch and int(num_items_in_batch),
                                        IGNORE_INDEX)
        return loss, ["loss", saved, s]

    def backward(self, saved, dloss=1.0, after_block=None):
        """saved: from `loss`, which is used up.  Adds to every gradient.  after_block, what is returned: as
        `body_backward`.
        """
        self.flat.make_current()
        saved, s = take(saved, "loss")
        dloss   = array_module(self.flat.data).asarray(1.0 if dloss is None else dloss, self.flat.grad_dtype)
        dlogits = cross_entropy_backward(dloss, s)
        return self.backward_logits(dlogits, saved, after_block)

    def _last(self, shape, attention_mask):
        """Where the last real token of each row stands: (B,), on the model's device."""
        B, T = shape
        if attention_mask is None:
            return to_device(np.full(B, T - 1), self.flat.device)
        mask = to_numpy(attention_mask).astype(bool)
        if mask.shape != (B, T):
            raise DataError(f"attention_mask must be of shape {B, T}, as the tokens, not {mask.shape}")
        if not mask.any(1).all():
            raise DataError(f"row {int(mask.any(1).argmin())} of the batch is padding alone: a text to be "
                            "classified has at least one token")
        return to_device(T - 1 - mask[:, ::-1].argmax(1), self.flat.device)

    def _checked_targets(self, targets, B: int):
        """The targets on the model's device. Those in host memory are checked, a GPU's taken as they are."""
        if array_module(targets) is np:
            targets = np.asarray(targets)
            if targets.shape != (B,) or not np.issubdtype(targets.dtype, np.integer):
                raise DataError(f"targets must be integers of shape {B,}, one for each row of tokens, not "
                                f"{targets.dtype} of shape {targets.shape}")
            wrong = ((targets < 0) | (targets >= len(self.labels))) & (targets != IGNORE_INDEX)
            if wrong.any():
                raise DataError(f"target {targets[wrong][0]} is not one of the {len(self.labels)} labels")
        return to_device(targets, self.flat.device)
