"""Train a small Llama on characters, each residual addition and the RMSNorm behind it being one call.

    python examples/character_llama.py [text file]

Without a file it reads itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import evenorm

WIDTH, HEADS, LENGTH = 64, 4, 64
BEFORE = evenorm.Epilogue(residual="before")  # y = norm(x + residual), and the sum comes back too


class Block(nn.Module):
    """Attention and a gated network, each behind a norm; queries and keys are normalized per head."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = evenorm.RMSNorm(WIDTH, activation=BEFORE)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.q_norm, self.k_norm = evenorm.RMSNorm(WIDTH // HEADS), evenorm.RMSNorm(WIDTH // HEADS)
        self.network_norm = evenorm.RMSNorm(WIDTH, activation=BEFORE)
        self.gate, self.up = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.down = nn.Linear(3 * WIDTH, WIDTH, bias=False)

    def forward(self, branch: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the last branch and the stream that it is to be added to; gives the next ones."""
        x, stream = self.attention_norm(branch, residual=stream)
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).movedim(-2, 1).unbind(-2)
        mixed = nn.functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, is_causal=True)
        x, stream = self.network_norm(self.out(mixed.movedim(1, 2).flatten(2)), residual=stream)
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x)), stream


class Llama(nn.Module):
    """Blocks between an embedding and a prediction of the next character."""

    def __init__(self, characters: int, depth: int = 3) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(characters, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.norm, self.head = evenorm.RMSNorm(WIDTH, activation=BEFORE), nn.Linear(WIDTH, characters, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Logits of the next character at each place."""
        branch, stream = self.embedding(text), self.position.weight[: text.shape[1]].expand(*text.shape, -1)
        for block in self.blocks:
            branch, stream = block(branch, stream)
        logits: Tensor = self.head(self.norm(branch, residual=stream)[0])
        return logits


def main(steps: int = 200, file: Path | None = None) -> float:
    """Train; return the last loss."""
    torch.manual_seed(0)
    text = (file or Path(__file__)).read_text(encoding="utf-8")
    alphabet = sorted(set(text))
    data = torch.tensor([alphabet.index(character) for character in text])
    model, loss = Llama(len(alphabet)), torch.tensor(0.0)
    optimizer = torch.optim.AdamW(evenorm.split_weight_decay(model, 0.1), lr=3e-3)
    for step in range(steps):
        rows = torch.stack([data[i : i + LENGTH + 1] for i in torch.randint(len(data) - LENGTH, (16,))])
        loss = nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:3}  loss {loss.item():.3f}")
    return loss.item()


if __name__ == "__main__":
    main(file=Path(sys.argv[1]) if len(sys.argv) > 1 else None)
