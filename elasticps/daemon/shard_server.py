"""One shard server of a daemon: a child, restarted, and known by its latest life."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable

import msgspec

from elasticps.core.records import ServerEnd, ServerRecord
from elasticps.core.restart import RestartPolicy
from elasticps.daemon.child import ChildSpec, Exit
from elasticps.daemon.config import DaemonConfig
from elasticps.daemon.cores import Cores, cores_text
from elasticps.daemon.supervisor import Supervisor
from elasticps.errors import ElasticError
from elasticps.server.doing import was_doing
from elasticps.wire.address import Address
from elasticps.wire.control_messages import ServerLoad
from elasticps.wire.tallies import ServerTally

log = logging.getLogger(__name__)

STUCK_AFTER_LOOKS = 20
"""Seconds without a word; it speaks once a second, but not while it computes."""


class ShardServerChild:
    """``record`` is the living server's, None between two lives. ``on_change`` is told of both.
    ``end`` is that of the last life which ended within a plugin.

    ``number`` counts the node's servers from 0; ``cores`` are where it may run, None: anywhere;
    ``threads`` how many it computes with.
    """

    def __init__(
        self,
        config: DaemonConfig,
        control: Address,
        on_change: Callable[[], None],
        number: int = 0,
        cores: Cores | None = None,
        threads: int = 1,
    ) -> None:
        suffix = f"-{number + 1}" if number else ""
        self.name = f"shard-server{suffix}"
        self._socket = config.runtime_dir / f"data{suffix}.sock"
        self._doing = config.runtime_dir / f"{self.name}.doing"
        host, port = config.data
        self._tcp = Address.tcp(host, port + number if port else 0)
        self._cores = cores
        self._threads = threads
        self.record: ServerRecord | None = None
        self.load: ServerLoad | None = None
        self.end: ServerEnd | None = None
        self._first_hello = asyncio.Event()
        self._unable = ""
        self._silent = 0
        self._is_stuck = False
        self._config = config
        self._control = control
        self._on_change = on_change

    def start(self, supervisor: Supervisor) -> None:
        arguments: dict[str, object] = {
            "control": self._control,
            "cluster": self._config.cluster,
            "node": self._config.node,
            "tcp": self._tcp,
            "unix": Address.unix(self._socket),
            "threads": self._threads,
            "doing": self._doing,
        }
        if self._config.security is not None:
            files = self._config.security.tls
            arguments |= {"tls-ca": files.ca, "tls-cert": files.cert, "tls-key": files.key}
        if self._cores is not None:
            arguments["cores"] = cores_text(self._cores)
        options = [part for key, item in arguments.items() for part in (f"--{key}", str(item))]
        if self._config.worker_units:  # other users, of the socket's group
            options.append("--shared")
        spec = ChildSpec(
            name=self.name,
            argv=(sys.executable, "-P", "-m", "elasticps.server", *options),
            env=dict(os.environ),
            restart=RestartPolicy(),
        )
        supervisor.add(spec, self._ended)

    async def listening(self) -> None:
        """Wait for the first life to listen. Raises ElasticError when it exits instead."""
        await self._first_hello.wait()
        if self._unable:
            log_file = self._config.log_dir / f"{self.name}.log"
            raise ElasticError(
                f"the shard server cannot run: it {self._unable}",
                where=f"node {self._config.node}",
                hint=f"{log_file} says why",
            )

    def said_hello(self, record: ServerRecord) -> None:
        self.record = record
        self._is_stuck = False
        self._first_hello.set()
        self._on_change()

    def heard(self, load: ServerLoad) -> None:
        """It says once a second what it holds; that it says anything shows that it is not stuck."""
        self.load = msgspec.structs.replace(load, tally=ServerTally())  # which is for the metrics
        self._silent = 0

    async def end_when_stuck(self, supervisor: Supervisor) -> None:
        """Kill a server that has said nothing for long, so that its backups take over.

        Counted in looks, not by the clock: a daemon that was itself stopped has not looked.
        """
        while True:
            await asyncio.sleep(1.0)
            self._silent = self._silent + 1 if self.record is not None else 0
            if self._silent < STUCK_AFTER_LOOKS:
                continue
            self._silent, self._is_stuck = 0, True
            for child in supervisor.snapshot():
                if child.name == self.name and child.pid is not None:
                    log.error("the %s says nothing for %d s: killed", self.name, STUCK_AFTER_LOOKS)
                    os.kill(child.pid, signal.SIGKILL)

    def gone(self) -> None:
        """Its channel closed: it serves nothing any more, and the cluster is told at once."""
        within = was_doing(self._doing)
        if self.record is not None and within:
            if self._is_stuck:
                within += f", which had not returned for {STUCK_AFTER_LOOKS} s"
            log.error("the %s died in %s", self.name, within)
            self.end = ServerEnd(server=self.record.server, within=within)
        self.record = self.load = None
        self._on_change()

    def _ended(self, exit_: Exit) -> None:
        log.error("the %s ended: %s", self.name, exit_.reason)
        if not self._first_hello.is_set() and exit_.signal is None:
            self._unable = exit_.reason
            self._first_hello.set()
