"""Embeddings that the optimizer can distinguish from weight matrices."""

from torch import nn

MARK = "is_embedding"


class Embedding(nn.Embedding):
    """An `nn.Embedding` whose weight is marked: neither its name nor its shape tells it from a matrix."""

    def __init__(self, num_embeddings: int, width: int):
        super().__init__(num_embeddings, width)
        setattr(self.weight, MARK, True)


def is_embedding(parameter: nn.Parameter) -> bool:
    """Return whether a parameter is the weight of an `Embedding`; deep copies lose the mark."""
    return getattr(parameter, MARK, False)
