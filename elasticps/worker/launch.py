"""Runs a user's script as a worker: ``python -m elasticps.worker SCRIPT ARGS``.

What the script raises is written, with the user's frames alone, to the file that the daemon named;
the daemon shows it once, to whoever watches the job.
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from pathlib import Path
from types import TracebackType

import msgspec

FAILURE_VARIABLE = "ELASTICPS_FAILURE_FILE"
FAILED_EXIT_CODE = 1


class ScriptFailure(msgspec.Struct, frozen=True):
    """Why a script ended badly, in one line and in full."""

    reason: str
    traceback: str


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
        reason = traceback.format_exception_only(error)[-1].strip()
        _record(ScriptFailure(reason, _formatted(error, script)))
        sys.exit(FAILED_EXIT_CODE)


def _formatted(error: BaseException, script: str) -> str:
    """The traceback from the script's own first frame on."""
    start: TracebackType | None = error.__traceback__
    while start is not None and start.tb_frame.f_code.co_filename != script:
        start = start.tb_next
    trace = start or error.__traceback__
    return "".join(traceback.format_exception(type(error), error, trace))


def _record(failure: ScriptFailure) -> None:
    path = os.environ.get(FAILURE_VARIABLE)
    if path:
        Path(path).write_bytes(msgspec.json.encode(failure))
    else:
        sys.stderr.write(failure.traceback or failure.reason + "\n")
