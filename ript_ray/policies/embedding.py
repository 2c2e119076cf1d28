"""Learned vectors, told apart from the weight matrices that they look like."""

from torch import nn

MARK = "is_embedding"


class Embedding(nn.Embedding):
    """torch's own, whose weight says what it is: neither its name nor its shape does."""

    def __init__(self, num_embeddings: int, width: int):
        super().__init__(num_embeddings, width)
        setattr(self.weight, MARK, True)


def is_embedding(parameter: nn.Parameter) -> bool:
    """Whether a parameter is the weight of an `Embedding`. A deep copy of one has forgotten it."""
    return getattr(parameter, MARK, False)
