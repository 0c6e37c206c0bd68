"""Weight decay of normalizers: EN601 and EN602."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from clinic.networks import Block, Language, tokens
from clinic.pair import Health, pair
from evenorm.doctor import Examination, examine


def _spared(model: nn.Module, words: Sequence[str]) -> AdamW:
    """AdamW with no decay for the names that contain one of some words."""
    named = list(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in named if not any(w in n for w in words)], "weight_decay": 0.01},
        {"params": [p for n, p in named if any(w in n for w in words)], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=1e-3)


@pair("EN602", "huggingface/transformers#16908")
def a_list_that_misses_the_last_norm(health: Health) -> Examination:
    words = ["bias", "ln_1.weight", "ln_2.weight"] + (["ln_f.weight"] if health == "healed" else [])
    model = Language()
    return examine(model, tokens(), optimizer=_spared(model, words))


@pair("EN602", "huggingface/transformers#42754")
def a_list_of_other_names(health: Health) -> Examination:
    class Named(nn.Module):
        """A block with BERT's name for one norm, and Llama's for another."""

        def __init__(self) -> None:
            super().__init__()
            self.LayerNorm, self.input_layernorm = nn.LayerNorm(8), nn.RMSNorm(8)
            self.dense, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.LayerNorm(x + self.dense(self.input_layernorm(x))))

    model = Named()
    words = ["bias", "LayerNorm"] + (["layernorm"] if health == "healed" else [])
    return examine(model, torch.randn(4, 8), optimizer=_spared(model, words))


@pair("EN602", "deepspeedai/DeepSpeedExamples#68")
def biases_of_some_norms_decay(health: Health) -> Examination:
    words = ["ln_1", "ln_2", "ln_f"] if health == "healed" else ["ln_1", "ln_2", "ln_f.weight"]
    model = Language()
    return examine(model, tokens(), optimizer=_spared(model, words))


@pair("EN601", "karpathy/minGPT#23")
def one_group_for_everything(health: Health) -> Examination:
    model = Language()
    optimizer = AdamW(model.parameters()) if health == "ailing" else _spared(model, ["bias", "ln_"])
    return examine(model, tokens(), optimizer=optimizer)


@pair("EN601", "huggingface/transformers#10598")
def only_biases_are_spared(health: Health) -> Examination:
    model = nn.Sequential(Block(), Block(), nn.LayerNorm(8))
    words = ["bias"] if health == "ailing" else ["bias", "ln_", "2.weight"]
    return examine(model, torch.randn(4, 8), optimizer=_spared(model, words))
