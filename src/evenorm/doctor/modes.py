"""The modes of a model that may refuse to change them."""

from __future__ import annotations

from torch import nn

__all__ = ["evaluate"]


def evaluate(model: nn.Module) -> nn.Module:
    """``eval()``; an exported graph, whose mode is written down, stays as it is.

    >>> evaluate(nn.Dropout()).training
    False
    """
    try:
        model.eval()
    except NotImplementedError:
        # torch.export puts this refusal in place of the graph's methods.
        for module in model.modules():
            if "train" not in vars(module):
                module.training = False
    return model
