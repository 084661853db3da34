"""The ``elasticps`` command: its commands, and the one place where errors are shown to the user."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from elasticps import __version__
from elasticps.cli.bench import bench
from elasticps.cli.certs import certs
from elasticps.cli.checkpoint import checkpoint
from elasticps.cli.completion import completion
from elasticps.cli.daemon import config, daemon
from elasticps.cli.doctor import doctor
from elasticps.cli.inspect import jobs, logs, nodes, status
from elasticps.cli.operate import cancel, drain, forget, rebalance, submit, undrain
from elasticps.cli.options import DEFAULT_API, Settings, api_url
from elasticps.cli.plan import plan
from elasticps.cli.plugins import plugins
from elasticps.cli.profile import profile
from elasticps.cli.restart import restart
from elasticps.cli.run import run
from elasticps.cli.scale import scale
from elasticps.cli.service import service
from elasticps.cli.sim import sim
from elasticps.cli.token import token
from elasticps.cli.top import top
from elasticps.cli.wait import wait
from elasticps.cli.watch import events
from elasticps.errors import ElasticError, UsageError

DEBUG_VARIABLE = "ELASTICPS_DEBUG"
FAILED, MISUSED, INTERRUPTED = 1, 2, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="elasticps %(version)s")
@click.option(
    "--api",
    envvar="ELASTICPS_API",
    type=api_url,
    metavar="URL",
    default=DEFAULT_API,
    show_default=True,
    show_envvar=True,
    help="The HTTP address of any daemon of the cluster.",
)
@click.option(
    "--ca",
    envvar="ELASTICPS_CA",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_envvar=True,
    help="The cluster's authority (ca.pem), by which an https API proves itself.",
)
@click.option(
    "--token-file",
    envvar="ELASTICPS_TOKEN_FILE",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_envvar=True,
    help="The file that holds your token, which nobody else may read.",
)
@click.pass_context
def cli(ctx: click.Context, api: str, ca: Path | None, token_file: Path | None) -> None:
    """An elastic parameter server for PyTorch: machines join, leave and die while a model trains.

    \b
    Example:
      elasticps run --nodes 3 train.py
      elasticps --api http://10.0.0.7:7400 status

    \b
    Exit codes:
      0    it worked
      1    it failed: the job failed, or the cluster cannot be reached
      2    it was asked for wrongly: a bad option, name or value
      130  it was stopped by Ctrl-C (143: by SIGTERM)

    ELASTICPS_DEBUG=1 shows where in elasticps an error came from.
    """
    ctx.obj = Settings(api=api, ca=ca, token_file=token_file)


for command in (
    run,
    plan,
    bench,
    submit,
    status,
    nodes,
    jobs,
    top,
    logs,
    events,
    profile,
    cancel,
    forget,
    scale,
    checkpoint,
    drain,
    undrain,
    rebalance,
    restart,
    plugins,
    certs,
    token,
    sim,
    daemon,
    config,
    service,
    completion,
    doctor,
    wait,
):
    cli.add_command(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; whatever goes wrong is told on stderr."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = cli.main(args=argv, prog_name="elasticps", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        _close_output()
        return FAILED
    except Exception as error:  # the user gets an error, not a traceback
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        return _show(_cause(error))
    return code if isinstance(code, int) else 0


def _open_closed_streams() -> None:
    """Where the shell closed one (``>&-``), what is written goes nowhere.

    Its number is taken, too: a socket must not get it.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123  as long as we live


def _show(error: BaseException) -> int:
    """Tell the user, and return the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return MISUSED
    if isinstance(error, click.ClickException):
        asked = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        hint = f"\n  hint: {asked} --help" if asked else ""
        _complain(error.format_message() + hint)
        return error.exit_code
    if isinstance(error, ElasticError):
        _complain(str(error))
        return MISUSED if isinstance(error, UsageError) else FAILED
    if isinstance(error, OSError):
        _complain(str(error))
        return FAILED
    _complain(
        f"internal error: {type(error).__name__}: {error}\n"
        f"  hint: this is a bug in elasticps; {DEBUG_VARIABLE}=1 shows where"
    )
    return FAILED


def _complain(text: str) -> None:
    lines = ("".join(char for char in line if char.isprintable()) for line in text.splitlines())
    sys.stderr.write("error: " + "\n".join(lines) + "\n")


def _cause(error: BaseException) -> BaseException:
    """The error that matters of a group of them: one of ours before any other."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [_cause(member) for member in error.exceptions]
    return next((cause for cause in causes if isinstance(cause, ElasticError)), causes[0])


def _close_output() -> None:
    """Whoever read our output is gone: let the interpreter flush what is left into nothing."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
