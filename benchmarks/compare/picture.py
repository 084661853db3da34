"""Loss against the bytes that a worker has sent: local SGD and the codecs, as a picture.

    python benchmarks/compare/picture.py [PICTURE.png]

The small character model in float32 on two real daemons, one worker each. Only what a worker sends
is counted; what it reads back is the model once for each push, and never coded. Prints the figures,
and one JSON object on the last line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import matplotlib as mpl
from cells import Row
from compare import Bench

from elasticps.testing import LocalCluster

mpl.use("Agg")
from matplotlib import pyplot

NODES = 2
TASK = "characters"
EVERY_STEPS = 16
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "images" / "loss-against-bytes.png"
DASHES = {"data": "-", "loca": "--", "code": ":"}

ROWS = [
    Row(name="data-parallel", job={}),
    *(Row(name=f"local-sgd h={h}", job={"strategy": f"local-sgd:h={h}"}) for h in (4, 16)),
    Row(name="local-sgd h=16, nesterov", job={"strategy": "local-sgd:h=16,outer=nesterov"}),
    *(
        Row(name=f"codec {codec}", job={"codec": codec})
        for codec in (
            "bf16",
            "int8",
            "ef+sign",
            "ef+top-k:ratio=0.05+int8",
            "ef+power-sgd:rank=4",
        )
    ),
    Row(name="local-sgd h=16, codec int8", job={"strategy": "local-sgd:h=16", "codec": "int8"}),
]

Points = list[dict[str, float]]


async def curves() -> dict[str, Points]:
    found: dict[str, Points] = {}
    with tempfile.TemporaryDirectory(prefix="elasticps-picture-") as directory:
        async with aiohttp.ClientSession() as session, LocalCluster(nodes=NODES) as cluster:
            bench = Bench(cluster, session, Path(directory), ("--curve", str(EVERY_STEPS)))
            for row in ROWS:
                report = await bench.trained(row, TASK, disturbed=False)
                found[row.name] = json.loads((report / "curve.json").read_text())
                print(_line(row.name, found), flush=True)
    return found


def _line(name: str, found: dict[str, Points]) -> str:
    last, base = found[name][-1], found[ROWS[0].name][-1]
    less = base["bytes"] / last["bytes"]
    return f"{name:32} loss {last['loss']:.3f}  {last['bytes'] / 1e6:8.2f} MB, 1/{less:.1f}"


def draw(found: dict[str, Points], picture: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    for name, points in found.items():
        axes.plot(
            [point["bytes"] for point in points],
            [point["loss"] for point in points],
            DASHES[name[:4]],
            marker="o",
            markersize=3,
            label=name,
        )
    axes.set(
        xscale="log",
        xlabel="bytes that one worker has sent",
        ylabel="loss on held-out text (nats a character)",
        title="The same steps, the same data: what is sent until a loss is reached",
    )
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=130)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("picture", type=Path, nargs="?", default=PICTURE)
    chosen = options.parse_args()
    found = asyncio.run(curves())
    draw(found, chosen.picture)
    last: dict[str, Any] = {name: points[-1] for name, points in found.items()}
    print(json.dumps({"picture": chosen.picture.name, "last": last}))


if __name__ == "__main__":
    main()
