"""A small GPT that learns to write Python, character by character, from Python's own library.

elasticps run --nodes 2 examples/charlm.py
elasticps run --nodes 2 examples/charlm.py --rounds 40 --layers 2
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import elasticps

CONTEXT = 128


class Text(torch.utils.data.Dataset):
    """Windows of the standard library's source, as (characters, the next characters)."""

    def __init__(self) -> None:
        sources = sorted(Path(os.__file__).parent.glob("*.py"))
        text = "".join(path.read_text(encoding="utf-8", errors="ignore") for path in sources)
        # One byte a character; whatever is not ASCII becomes a question mark.
        self._data = torch.tensor(list(text.encode("ascii", errors="replace")))

    def __len__(self) -> int:
        return (len(self._data) - 1) // CONTEXT

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = index * CONTEXT
        window = self._data[start : start + CONTEXT + 1]
        return window[:-1], window[1:]


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        q, k, v = (
            part.view(shape).transpose(1, 2) for part in self.mix(self.norm_1(x)).chunk(3, -1)
        )
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(x.shape))
        return x + self.think(self.norm_2(x))


class CharacterModel(nn.Module):
    """A GPT-2 in small: about 1.2 million parameters at 6 layers of width 128."""

    def __init__(self, layers: int, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(128, width), nn.Embedding(CONTEXT, width)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.characters(x) + self.places.weight[: x.shape[1]]
        return self.head(self.norm(self.layers(x)))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=200)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--layers", type=int, default=6)
    chosen = options.parse_args()
    torch.manual_seed(0)
    with elasticps.join() as run:
        model = CharacterModel(chosen.layers)
        optimizer = run.optimizer(model, "adamw", lr=1e-3)
        for text, following in run.data(Text(), batch_size=chosen.batch, epochs=100):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(text).flatten(0, 1), following.flatten())
            loss.backward()
            optimizer.step()
            bits = float(loss.detach()) / math.log(2)
            run.log(loss=loss, bits_per_character=bits)
            if run.is_main and run.round % 10 == 0:
                print(f"round {run.round}: {bits:.2f} bits a character")
            if run.round >= chosen.rounds:
                break


if __name__ == "__main__":
    main()
