"""Does the plan come true? Measured beside predicted step times, over links of several speeds.

Nodes in network namespaces of their own, with links of a given rate each way, train one small
model under each choice; before that, over the same links, a trial predicts them all. A measured
time is that of some whole rounds, divided by the steps in them. Needs root, and ``ip``
and ``tc``. From the repository's root: ``python -m benchmarks.plan --help``. Prints a table, and
one JSON object on the last line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

from elasticps.cli.answers import Submission
from elasticps.cli.client import Api, watch
from elasticps.cli.progress import Progress
from elasticps.cli.trial import try_out
from elasticps.core.choices import CANDIDATES, Candidate, choose
from elasticps.daemon.local_cluster import LocalCluster, Place
from elasticps.errors import JobFailed
from elasticps.store import EmbeddedEtcd, StoreConfig
from tests.chaos.links import Links
from tests.chaos.network import Network, can_be_made, enter, is_inside

SCRIPT = Path(__file__).with_name("plan_train.py")
BLOCK_BYTES = 64 << 10
"""Small, so that the servers lead about as much each."""
APART = 1.5
"""Two measured times are told apart where one is so many times the other."""
UNLIMITED = "unlimited"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8, help="of 256 KiB each")
    parser.add_argument("--rounds", type=int, default=6, help="measured of each choice")
    parser.add_argument(
        "--rates", nargs="+", default=["20mbit", "200mbit", UNLIMITED], help="as tc writes them"
    )
    parser.add_argument(
        "--choices",
        nargs="+",
        default=[f"{each.strategy}/{each.codec}" for each in CANDIDATES],
        help="each as STRATEGY/CODEC",
    )
    options = parser.parse_args(arguments)
    reason = can_be_made()
    if not is_inside():
        if reason:
            sys.exit(reason)
        enter("benchmarks.plan", sys.argv[1:])
    print(json.dumps(asyncio.run(measured(options))))


async def measured(options: argparse.Namespace) -> dict[str, Any]:
    by_name = {f"{each.strategy}/{each.codec}": each for each in CANDIDATES}
    candidates = [by_name[choice] for choice in options.choices]
    links = []
    async with started(options.nodes) as (network, cluster), Api(cluster.api) as api:
        nodes = list(cluster.nodes)
        for rate in options.rates:
            with ExitStack() as shaped:
                for node in nodes if rate != UNLIMITED else ():
                    shaped.enter_context(network.slow(node, rate))
                links.append(await over_one_link(api, rate, candidates, options))
    return {
        "benchmark": "plan",
        "nodes": options.nodes,
        "replicas": options.replicas,
        "links": links,
        "pairs": sum(link["pairs"] for link in links),
        "mispredicted": sum(len(link["mispredicted"]) for link in links),
    }


async def over_one_link(
    api: Api, rate: str, candidates: Sequence[Candidate], options: argparse.Namespace
) -> dict[str, Any]:
    with Progress() as progress:
        trial = await try_out(api, submission(options, ("1", "1000")), progress)
    predictions = {each.candidate: each for each in trial.predictions()}
    link = trial.link
    assert link is not None
    print(f"{rate}: {link.bytes_per_s * 8e-6:.1f} Mbit/s, {link.round_trip_s * 1e3:.2f} ms")
    rows = []
    for candidate in candidates:
        seconds = await timed(api, candidate, options)
        predicted = predictions[candidate]
        rows.append(
            {
                "choice": f"{candidate.strategy}/{candidate.codec}",
                "measured_s": seconds,
                "predicted_s": predicted.step_s,
                "reason": predicted.reason,
            }
        )
        name = rows[-1]["choice"]
        print(f"  {name:26} {seconds:8.4f} s  predicted {predicted.step_s:8.4f} s", flush=True)
    apart, wrong = ordered(rows)
    best = choose([predictions[each] for each in candidates], approximate=True)
    return {
        "rate": rate,
        "measured_bytes_per_s": link.bytes_per_s,
        "measured_round_trip_s": link.round_trip_s,
        "choices": rows,
        "pairs": apart,
        "mispredicted": wrong,
        "auto_approximate": f"{best.candidate.strategy}/{best.candidate.codec}",
    }


def ordered(rows: Sequence[dict[str, Any]]) -> tuple[int, list[tuple[str, str]]]:
    """How many pairs are clearly apart, and which of those are predicted in the other order."""
    apart, wrong = 0, []
    for one, other in combinations(sorted(rows, key=lambda row: row["measured_s"]), 2):
        if other["measured_s"] > APART * one["measured_s"]:
            apart += 1
            if other["predicted_s"] <= one["predicted_s"]:
                wrong.append((one["choice"], other["choice"]))
    return apart, wrong


def submission(options: argparse.Namespace, rounds: tuple[str, str], **choice: Any) -> Submission:
    """A job of the script; ``rounds``: how many steps one has, and how many there are."""
    return Submission(
        argv=(str(SCRIPT), str(options.layers), *rounds),
        cwd=str(SCRIPT.parent),
        start_workers=options.nodes,
        max_workers=options.nodes,
        replicas=options.replicas,
        block_bytes=BLOCK_BYTES,
        **choice,
    )


async def timed(api: Api, candidate: Candidate, options: argparse.Namespace) -> float:
    """Seconds a step, as a job's worker has timed them. Raises JobFailed."""
    rounds = (str(candidate.h), str(options.rounds))
    wanted = submission(options, rounds, strategy=candidate.strategy, codec=candidate.codec)
    submitted = await api.submit(wanted)
    async for job in watch(lambda: api.job(submitted.job), period_s=0.1):
        if job.final:
            seconds = job.metrics.get("step_s")
            if job.state != "SUCCEEDED" or seconds is None:
                raise JobFailed(f"{job.state}: {job.reason} {job.failure}", where=job.job)
            return seconds
    raise AssertionError("a watch ends by an error alone")


@asynccontextmanager
async def started(count: int) -> AsyncIterator[tuple[Network, LocalCluster]]:
    """Nodes that reach each other, and etcd, by their links alone."""
    network, hosts = Network(), dict[str, Links]()

    def place(node: str) -> Place:
        return Place(
            host=network.host(node),
            prefix=network.prefix(node),
            options=("--etcd", hosts[node].endpoints, "--allow-insecure-network"),
        )

    async with AsyncExitStack() as stack:
        etcd = await stack.enter_async_context(EmbeddedEtcd())
        port = int(etcd.endpoint.rpartition(":")[2])
        names = [f"n{number + 1}" for number in range(count)]
        for name in names:
            network.add(name)
            links = Links(network.gateway(name), (port,))
            hosts[name] = await stack.enter_async_context(links)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="plan-")))
        cluster = LocalCluster(
            nodes=count,
            etcd=StoreConfig(endpoints=(etcd.endpoint,)),
            directory=directory,
            lease_ttl_s=10,
            place=place,
        )
        yield network, await stack.enter_async_context(cluster)


if __name__ == "__main__":
    main()
