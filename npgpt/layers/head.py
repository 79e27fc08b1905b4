"""The head: how well each token of the vocabulary would go on from here."""

from npgpt.layers.module import Module, Parameter
from npgpt.ops.cross_entropy import cross_entropy_backward, cross_entropy_forward
from npgpt.ops.linear import linear_backward, linear_forward
from npgpt.ops.linear_cross_entropy import linear_cross_entropy_backward, linear_cross_entropy_forward
from npgpt.ops.softcap import softcap_backward, softcap_forward


class LanguageModelHead(Module):
    """logits = x Wᵀ, or of these c tanh(logits/c).   x: (B, T, C) → logits: (B, T, V)

    weight: (V, C), a row a token; the embedding's where the two are tied (Press & Wolf 2017).
    softcap: c, or 0 for none.

    `loss` is the cross-entropy of the logits as one op, for which they need not all exist at once; capped
    logits do.
    """

    def __init__(self, weight: Parameter, softcap: float = 0.0):
        self.weight, self.softcap = weight, softcap

    def forward(self, x):
        logits, s1 = linear_forward(x, self.weight.data.T)
        if not self.softcap:
            return logits, (s1, None)
        logits, s2 = softcap_forward(logits, self.softcap)
        return logits, (s1, s2)

    def backward(self, dlogits, saved):
        """dlogits: (B, T, V)  →  dx: (B, T, C)"""
        s1, s2 = saved
        if s2:
            dlogits = softcap_backward(dlogits, s2)
        learned = not self.weight.frozen
        dx, dweight, _ = linear_backward(dlogits, s1, learned=(learned, False))
        if learned:
            self.weight.add_grad(dweight.T)               # the map's matrix was Wᵀ: (C, V) → (V, C)
        return dx

    def loss(self, x, targets, num_items_in_batch=None):
        """x: (B, T, C)  targets: integers (B, T)  →  loss: 0-d, nats (npgpt.ops.cross_entropy)"""
        if not self.softcap:
            return linear_cross_entropy_forward(x, self.weight.data, targets, num_items_in_batch)
        logits, s1 = self.forward(x)
        loss, s2   = cross_entropy_forward(logits, targets, num_items_in_batch)
        return loss, (s1, s2)

    def loss_backward(self, dloss, saved):
        """dloss: 0-d  →  dx: (B, T, C)"""
        if not self.softcap:
            dx, dweight = linear_cross_entropy_backward(dloss, saved, self.weight.unwritten_grad,
                                                        not self.weight.frozen)
            self.weight.add_grad(dweight)
            return dx
        s1, s2 = saved
        return self.backward(cross_entropy_backward(dloss, s2), s1)
