"""Children to start, and what they have printed."""

from __future__ import annotations

import sys
import textwrap

from elasticps.core.restart import RestartPolicy, RestartWhen
from elasticps.daemon.child import Child, ChildSpec
from elasticps.daemon.log_files import LinesMissed, LogBuffer, LogFile

NEVER = RestartPolicy(when=RestartWhen.NEVER)
ENV = {"PATH": "/usr/bin:/bin"}


def sh(script: str, name: str = "child", restart: RestartPolicy = NEVER, **more) -> ChildSpec:
    argv = ("/bin/sh", "-c", textwrap.dedent(script))
    return ChildSpec(name=name, argv=argv, env=ENV, restart=restart, **more)


def py(script: str, name: str = "child", restart: RestartPolicy = NEVER, **more) -> ChildSpec:
    argv = (sys.executable, "-I", "-S", "-u", "-c", textwrap.dedent(script))
    return ChildSpec(name=name, argv=argv, env=ENV, restart=restart, **more)


def child_of(spec: ChildSpec, directory) -> Child:
    return Child(spec, log_file=LogFile(directory / "child.log"), log_buffer=LogBuffer())


def printed(child: Child, stream: str = "stdout") -> list[str]:
    return [
        line.text
        for line in child.log_buffer.since()
        if not isinstance(line, LinesMissed) and line.stream == stream
    ]


async def life(spec: ChildSpec, directory) -> Child:
    """One whole life of a child."""
    child = child_of(spec, directory)
    child.start()
    await child.wait()
    return child
