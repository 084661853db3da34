"""What a worker's systemd unit runs, with the user that it has: ``elasticps-worker@.service``.

``launch``: fetch from the daemon what to run, and become it. ``ended``: tell the daemon how it
ended, in systemd's words. The daemon's end is ``daemon.unit_runner``, which asks systemd who calls.
"""

from __future__ import annotations

import os
import socket
import sys

import msgspec

SOCKETS_VARIABLE = "ELASTICPS_SOCKETS"
"""Names the folder of this worker's own sockets, which its group may enter."""
MACHINE_VARIABLE = "ELASTICPS_MACHINE"
"""Says which machine this is, by the daemon's word: the unit has a mount namespace of its own, yet
sockets in those folders reach the machine's other workers."""
MAX_LAUNCH_BYTES = 8 << 20
DESCRIPTORS = 3
"""stdout, stderr, and the file for the script's failure, passed with the launch."""


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """A worker: the script and its arguments, the environment, and the folder to begin in."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str | None


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """EXIT_CODE, EXIT_STATUS and SERVICE_RESULT, as systemd tells ExecStopPost."""

    code: str
    status: str
    result: str


def launch(path: str) -> None:
    """Become the worker that the daemon listening at ``path`` describes."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(path)
        first, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, DESCRIPTORS)
        content = bytearray(first)
        while (more := channel.recv(1 << 16)) and len(content) <= MAX_LAUNCH_BYTES:
            content += more
    if len(descriptors) != DESCRIPTORS:
        sys.exit("the daemon has refused this unit")
    for stream, descriptor in enumerate(descriptors[:2], start=1):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    failure = descriptors[2]
    os.set_inheritable(failure, True)
    told = msgspec.json.decode(content, type=Launch)
    if told.cwd is not None:
        try:
            os.chdir(told.cwd)
        except OSError as error:
            sys.exit(f"the worker's user cannot enter {told.cwd}: {error.strerror}")
    own = {SOCKETS_VARIABLE: os.environ["RUNTIME_DIRECTORY"]}
    failures = {"ELASTICPS_FAILURE_FILE": f"/dev/fd/{failure}"}
    command = (sys.executable, "-P", "-m", "elasticps.worker", *told.argv)
    os.execve(sys.executable, command, {**told.env, **own, **failures})  # noqa: S606 - no shell


def ended(path: str) -> None:
    """Say how it ended; nothing where nobody listens any more."""
    names = {"code": "EXIT_CODE", "status": "EXIT_STATUS", "result": "SERVICE_RESULT"}
    how = Ended(**{name: os.environ.get(variable, "") for name, variable in names.items()})
    with socket.socket(socket.AF_UNIX) as channel:
        try:
            channel.connect(path)
            channel.sendall(msgspec.json.encode(how))
        except OSError as error:
            sys.exit(f"nobody hears how it ended: {error.strerror}")


if __name__ == "__main__":
    {"launch": launch, "ended": ended}[sys.argv[1]](sys.argv[2])
