"""Runs a user's script as a worker: ``python -m elasticps.worker SCRIPT ARGS``.

What the script raises is written, with the user's frames alone, to the file that the daemon named;
the daemon shows it once, to whoever watches the job.
"""

from __future__ import annotations

import os
import re
import runpy
import sys
import traceback
from itertools import takewhile
from pathlib import Path
from types import TracebackType

import msgspec

from elasticps.errors import CheckpointError, ElasticError

FAILURE_VARIABLE = "ELASTICPS_FAILURE_FILE"
FAILED_EXIT_CODE = 1
PACKAGE = Path(__file__).resolve().parents[1]
LOADER_ENDED = re.compile(
    r"DataLoader worker \(pid.*\) (is killed|exited unexpectedly)(?P<code> with exit code)?"
)
"""As torch says it, of its own accord or when it looks: it has no type for it."""


class ScriptFailure(msgspec.Struct, frozen=True):
    """Why a script ended badly, in one line and in full.

    ``killed``: a process that it needs was, so it ends as if it had been killed itself.
    """

    reason: str
    traceback: str
    killed: bool = False


def main() -> None:
    script, *arguments = sys.argv[1:]
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        if error.code in (0, None):
            return
        _record(ScriptFailure(f"the script exited with {error.code!r}", ""))
        sys.exit(FAILED_EXIT_CODE)
    except BaseException as error:  # whatever the script raised is the user's to see
        killed = killed_loader(error)
        reason = _reason(killed or error).rstrip()
        _record(ScriptFailure(reason, _formatted(error, script), killed is not None))
        sys.exit(FAILED_EXIT_CODE)


def killed_loader(error: BaseException) -> RuntimeError | None:
    """What torch says of a DataLoader's process that was killed, if that is behind ``error``.

    It may be raised wherever the script is: torch's handler of SIGCHLD does it. One that ended by
    itself has done so with an exit code, which is the script's own affair.
    """
    told: RuntimeError | None = None
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RuntimeError) and (ended := LOADER_ENDED.match(str(seen))):
            if ended["code"]:
                return None
            told = seen
        seen = seen.__cause__ or seen.__context__
    return told


def _reason(error: BaseException) -> str:
    """What elasticps itself refuses is a sentence already, which names field and limit."""
    return str(error) if isinstance(error, ElasticError) else f"{type(error).__name__}: {error}"


def _formatted(error: BaseException, script: str) -> str:
    """The traceback from the script's own first frame on; none where the script cannot be run.

    Of what is wrong with a checkpoint elasticps's own frames say nothing.
    """
    start: TracebackType | None = error.__traceback__
    while start is not None and start.tb_frame.f_code.co_filename != script:
        start = start.tb_next
    if start is None:
        return "".join(traceback.format_exception_only(error))
    if isinstance(error, CheckpointError):
        frames = takewhile(_is_outside, traceback.extract_tb(start))
        told = [*traceback.format_list(frames), *traceback.format_exception_only(error)]
        return "".join(["Traceback (most recent call last):\n", *told])
    return "".join(traceback.format_exception(type(error), error, start))


def _is_outside(frame: traceback.FrameSummary) -> bool:
    return not Path(frame.filename).is_relative_to(PACKAGE)


def _record(failure: ScriptFailure) -> None:
    path = os.environ.get(FAILURE_VARIABLE)
    reason, told = _encodable(failure.reason), _encodable(failure.traceback)
    failure = ScriptFailure(reason, told, failure.killed)
    if path and path.startswith("/dev/fd/"):
        # A unit's, which has no folder to write to; its daemon looks whether it is whole.
        with Path(path).open("wb") as opened:
            opened.write(msgspec.json.encode(failure))
    elif path:
        # Whole or not at all: half of one would be told as the failure in place of a kill.
        fresh = Path(f"{path}.fresh")
        fresh.write_bytes(msgspec.json.encode(failure))
        fresh.replace(path)
    else:
        sys.stderr.write(failure.traceback or failure.reason + "\n")


def _encodable(text: str) -> str:
    """An exception may carry lone surrogates: a file's name that is not UTF-8, say."""
    return text.encode(errors="backslashreplace").decode()
