"""The contestant elasticps: a local cluster of real processes and a job on it, as users have it.

``python -m benchmarks.cluster --socket PATH [--nodes N] [--workers N] [--replicas N] SCRIPT ARGS``
starts etcd and the daemons, submits the script, and ends with the job. The script's workers take
the turns; after its end this process has written beside the socket which transports it used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.contest import ROOT, Entry
from elasticps.cli.answers import Submission
from elasticps.cli.client import Api, watch
from elasticps.daemon.local_cluster import LocalCluster
from elasticps.wire.transports import TRANSPORTS_VARIABLE

LEASE_TTL_S = 20
"""Long: between its turns a cluster may wait while others have the machine."""
METRICS_PERIOD_S = 2.0
LOOK_S = 0.5
HERE = Path(__file__).resolve().parent
PUSH_PULL = HERE / "push_pull_worker.py"
_BYTES = re.compile(
    r'^elasticps_[a-z_]*(?:received|sent)_bytes_total\{.*transport="(\w+)".*\} ([0-9.e+]+)$',
    re.MULTILINE,
)


def entry(
    name: str,
    script: Path,
    arguments: Sequence[str],
    *,
    nodes: int = 1,
    workers: int = 1,
    replicas: int = 1,
    block_bytes: int = 4 << 20,
    codec: str = "none",
    transports: str = "",
    link: str = "",
) -> Entry:
    """A contestant; ``transports`` as in ELASTICPS_TRANSPORTS, empty for what is best.

    ``link``: the rate, as tc writes it, of a link that is to be between worker and server.
    """
    options = {
        "nodes": nodes,
        "workers": workers,
        "replicas": replicas,
        "block-bytes": block_bytes,
        "codec": codec,
        "transports": transports,
        "link": link,
    }
    flags = [word for key, item in options.items() for word in (f"--{key}", str(item))]
    return Entry(
        name=name,
        module="benchmarks.cluster",
        options=(*flags, str(script), *arguments),
        parts=workers,
        settles=True,
    )


def used_transports(metrics: str) -> dict[str, float]:
    """The bytes of a shard server by transport, out of its daemon's /metrics."""
    found: dict[str, float] = {}
    for transport, count in _BYTES.findall(metrics):
        found[transport] = found.get(transport, 0.0) + float(count)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--block-bytes", type=int, default=4 << 20)
    parser.add_argument("--codec", default="none")
    parser.add_argument("--transports", default="")
    parser.add_argument("--link", default="")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.link:
        from benchmarks import slow_link  # needs root and the tests' packages

        if not slow_link.is_inside():
            slow_link.enter("benchmarks.cluster", sys.argv[1:])
    os.environ["PYTHONPATH"] = str(ROOT)
    if options.transports:
        os.environ[TRANSPORTS_VARIABLE] = options.transports  # the daemons' workers inherit it
    asyncio.run(work(options))


def opened(options: argparse.Namespace) -> AbstractAsyncContextManager[LocalCluster]:
    if options.link:
        from benchmarks.slow_link import linked_cluster

        return linked_cluster(options.link, LEASE_TTL_S)
    per_node = -(-options.workers // options.nodes)
    return LocalCluster(nodes=options.nodes, workers_per_node=per_node, lease_ttl_s=LEASE_TTL_S)


async def work(options: argparse.Namespace) -> None:
    """Run the job to its end."""
    async with opened(options) as cluster, Api(cluster.api) as api:
        submission = Submission(
            argv=(options.script, "--socket", str(options.socket), *options.arguments),
            cwd=str(ROOT),
            start_workers=options.workers,
            max_workers=options.workers,
            replicas=options.replicas,
            block_bytes=options.block_bytes,
            codec=options.codec,
        )
        submitted = await api.submit(submission)
        telling = asyncio.create_task(_tell_transports(cluster, options.socket))
        settled = options.socket.with_suffix(".settled")
        async for job in watch(lambda: api.job(submitted.job), period_s=LOOK_S):
            if job.round and not (job.under_replicated or job.pending_moves):
                settled.touch()
            if job.final:
                telling.cancel()
                if job.state != "SUCCEEDED":
                    sys.exit(f"{job.state}: {job.reason} {job.failure}")
                return


async def _tell_transports(cluster: LocalCluster, socket: Path) -> None:
    """Keep beside the socket what the servers say of their connections' bytes."""
    async with aiohttp.ClientSession() as session:
        while True:
            total: dict[str, Any] = {}
            for node in cluster.nodes.values():
                async with session.get(f"{node.http}/metrics") as answer:
                    for transport, count in used_transports(await answer.text()).items():
                        total[transport] = total.get(transport, 0.0) + count
            fresh = socket.with_suffix(".fresh")
            fresh.write_text(json.dumps({"transports": total}))
            fresh.replace(socket.with_suffix(".json"))
            await asyncio.sleep(METRICS_PERIOD_S)


if __name__ == "__main__":
    main()
