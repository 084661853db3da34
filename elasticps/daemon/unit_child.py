"""The daemon's child that stands for a worker's systemd unit."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from elasticps.core.ids import WorkerId
from elasticps.core.restart import RestartPolicy, RestartWhen
from elasticps.daemon.child import ChildSpec
from elasticps.daemon.unit_runner import STOP_GRACE_S
from elasticps.wire.machine import this_machine
from elasticps.wire.peer_process import PeerProcess
from elasticps.worker.unit import MACHINE_VARIABLE, Launch

INHERITED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
OWN_HOME = {"HOME": "/tmp", "USER": "elasticps-worker", "LOGNAME": "elasticps-worker"}  # noqa: S108
"""Of a user that the unit alone knows: its /tmp is its own."""


def launch_file(worker: WorkerId, directory: Path) -> Path:
    """Where the worker's launch waits for the child, which removes it once it is read."""
    return directory / f"{worker}.launch"


def main_process(worker: WorkerId, directory: Path) -> PeerProcess | None:
    """The unit's process that was handed the worker's launch; None as long as none was."""
    try:
        return msgspec.json.decode((directory / f"{worker}.process").read_bytes(), type=PeerProcess)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def unit_child(
    name: str, worker: WorkerId, launch: Launch, directory: Path, failure_file: Path
) -> ChildSpec:
    """A child that lives as the unit ``elasticps-worker@WORKER`` does.

    Nothing of the job is in its own environment or arguments: it runs as the daemon's user, and
    the job's variables might have it run what the job likes.
    """
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    env = {**inherited, **OWN_HOME, **launch.env, MACHINE_VARIABLE: this_machine()}
    whole = Launch(argv=launch.argv, env=env, cwd=launch.cwd)
    path = launch_file(worker, directory)
    path.unlink(missing_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(msgspec.json.encode(whole))
    runner = (sys.executable, "-P", "-m", "elasticps.daemon.unit_runner")
    return ChildSpec(
        name=name,
        argv=(*runner, str(worker), str(directory), str(failure_file)),
        env=inherited,
        cwd="/",
        restart=RestartPolicy(when=RestartWhen.NEVER),
        stop_grace_s=2 * STOP_GRACE_S,
    )
