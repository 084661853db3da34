"""A small GPT that learns to write Python, character by character, from Python's own library.

elasticps run --nodes 2 examples/charlm.py --rounds 40 --layers 2
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import nn

import elasticps

CONTEXT = 128


def library() -> torch.utils.data.TensorDataset:
    """Windows of the standard library's source, as (characters, the next characters)."""
    sources = sorted(Path(argparse.__file__).parent.glob("*.py"))
    text = "".join(path.read_text(encoding="utf-8", errors="ignore") for path in sources)
    windows = torch.tensor(list(text.encode("ascii", "replace"))).unfold(0, CONTEXT + 1, CONTEXT)
    return torch.utils.data.TensorDataset(windows[:, :-1], windows[:, 1:])


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, wide = heads, 4 * width
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.mix(self.norm_1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.transpose(1, 3).unbind(2)  # each (batch, head, place, width of a head)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
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


def main(rounds: int, layers: int) -> None:
    torch.manual_seed(0)
    with elasticps.join() as run:
        model = CharacterModel(layers)
        optimizer = run.optimizer(model, "adamw", lr=1e-3)
        for text, following in run.data(library(), batch_size=16, epochs=100):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(text).flatten(0, 1), following.flatten())
            loss.backward()
            optimizer.step()
            run.log(loss=loss, bits_per_character=loss / math.log(2))
            if run.is_main and run.round % 10 == 0:
                print(f"round {run.round}: {loss.item() / math.log(2):.2f} bits a character")
            if run.round >= rounds:
                break


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=200)
    options.add_argument("--layers", type=int, default=6)
    main(**vars(options.parse_args()))
