"""Embedding: a table with a row for each token."""

from npgpt.layers.module import Module, Parameter
from npgpt.ops.embedding import embedding_backward, embedding_forward


class Embedding(Module):
    """weight: (n_rows, n_embd).   tokens: integers (...) → y: (..., n_embd)"""

    def __init__(self, n_rows: int, n_embd: int, std: float = 0.02):
        self.weight = Parameter(n_rows, n_embd, std=std)

    def forward(self, tokens):
        return embedding_forward(tokens, self.weight.data)

    def backward(self, dy, saved) -> None:
        """Returns nothing: tokens have no gradient."""
        if not self.weight.frozen:
            embedding_backward(dy, saved, add_to=self.weight.grad)            # V rows, of which few are used
