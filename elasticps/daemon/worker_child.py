"""The process of a worker: what it is started with, and what it leaves behind.

Its files lie in the directory of the daemon's runtime files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from elasticps.core.records import JobSpec
from elasticps.core.restart import RestartPolicy, RestartWhen
from elasticps.daemon.child import ChildSpec
from elasticps.daemon.config import DaemonConfig
from elasticps.daemon.life import Life
from elasticps.daemon.log_files import LogBuffer, LogLine
from elasticps.daemon.unit_child import launch_file, unit_child
from elasticps.worker.launch import ScriptFailure
from elasticps.worker.unit import Launch

LAST_LINES = 20


def child_of(
    life: Life, spec: JobSpec, config: DaemonConfig, control: str, group: Mapping[str, str]
) -> ChildSpec:
    """What lives ``life``; where workers are units, the child that stands for it.

    ``control`` is the daemon's control socket, ``group`` the variables of the job's process group.
    """
    env = {
        "OMP_NUM_THREADS": str(config.threads_per_worker),
        **group,
        **spec.env,
        "PYTHONUNBUFFERED": "1",
        "ELASTICPS_AGENT": control,
        "ELASTICPS_WORKER": life.uid,
        "ELASTICPS_FAILURE_FILE": str(_failure_file(life, config.runtime_dir)),
    }
    if config.worker_units:
        launch = Launch(argv=spec.argv, env=env, cwd=spec.cwd)
        failure_file = _failure_file(life, config.runtime_dir)
        child = unit_child(life.child, life.worker, launch, config.runtime_dir, failure_file)
        return replace(child, source=life.source)
    return ChildSpec(
        name=life.child,
        argv=(sys.executable, "-P", "-m", "elasticps.worker", *spec.argv),
        env={**os.environ, **env},
        cwd=spec.cwd,
        restart=RestartPolicy(when=RestartWhen.NEVER),
        source=life.source,
    )


def failure_of(life: Life, directory: Path) -> ScriptFailure | None:
    """What the script has failed with; None where it has not said."""
    path = _failure_file(life, directory)
    try:
        return msgspec.json.decode(path.read_bytes(), type=ScriptFailure)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        return ScriptFailure(f"its failure could not be read: {error}", "")


def last_words(life: Life, logs: LogBuffer) -> list[str]:
    """What a process that ended by itself, and by no exception, wrote to stderr last."""
    words: list[str] = []
    for line in reversed(logs.since()):
        if isinstance(line, LogLine) and (line.source, line.stream) == (life.source, "stderr"):
            words.append(line.text)
            if len(words) == LAST_LINES:
                break
    return words[::-1]


def remove_files(life: Life, directory: Path) -> None:
    """Nobody will read them any more."""
    _failure_file(life, directory).unlink(missing_ok=True)
    launch_file(life.worker, directory).unlink(missing_ok=True)


def _failure_file(life: Life, directory: Path) -> Path:
    # After a daemon's own death a name comes again, and what an earlier life left behind too.
    return directory / f"{life.child}.{life.worker}.failure"
