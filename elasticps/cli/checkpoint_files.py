"""``elasticps checkpoint list`` and ``export``: checkpoints as files, of a job or a directory."""

from __future__ import annotations

import os
from pathlib import Path

import click
import msgspec

from elasticps.cli.answers import StoredCheckpoint, StoredCheckpoints
from elasticps.cli.completion import complete_job
from elasticps.cli.options import Settings, json_option, require_known, run_async
from elasticps.cli.output import human_bytes, print_answer, print_json
from elasticps.cli.progress import Progress
from elasticps.errors import CheckpointError, ElasticError, UsageError, listed


@click.command("list")
@click.argument("place", metavar="JOB|DIRECTORY", shell_complete=complete_job)
@click.option("--verify", is_flag=True, help="Hold every bit against its digest; a directory only.")
@json_option
@click.pass_obj
def list_checkpoints(settings: Settings, place: str, verify: bool, as_json: bool) -> None:
    """List the checkpoints of JOB, or those in DIRECTORY of this machine, the newest first.

    What has a slash in it, or is "." or "..", is a directory, and so is the name of one here that
    has checkpoints. A job's are listed by a daemon that sees its directory. One that is not
    complete is told with why, and no job goes on from it.

    \b
    Example:
      elasticps checkpoint list mnist
      elasticps checkpoint list ./saved --verify

    \b
    Exit codes:
      0    listed, whether complete or not
      1    the cluster, or the directory, cannot be reached
      2    no such job, or it has no directory
    """
    if _is_path(place) or _has_checkpoints(Path(place)):
        answer = _in_directory(_place(place), verify)
    elif verify:
        raise UsageError("a job's checkpoints are not verified from here", field="verify")
    else:
        answer = run_async(_of_job(settings, place, is_here=Path(place).is_dir()))
    _require_readable(answer)
    print_answer(answer, as_json=as_json)


def _require_readable(answer: StoredCheckpoints) -> None:
    if answer.problem:
        where = answer.directory + (f" on {answer.node}" if answer.node else "")
        raise ElasticError(answer.problem, where=where)


def _is_path(place: str) -> bool:
    return os.sep in place or place in (".", "..")


def _has_checkpoints(place: Path) -> bool:
    from elasticps.checkpoint.directory import newest

    try:
        newest(place)
    except CheckpointError:
        return False
    return True


def _place(text: str) -> Path:
    """A path as the user gives it, made absolute, or a URL."""
    from elasticps.checkpoint.url import Url, check_installed, place_of

    check_installed(text, "directory")
    place = place_of(text)
    return place if isinstance(place, Url) else place.absolute()


def _in_directory(directory: Path, verify: bool) -> StoredCheckpoints:
    from elasticps.checkpoint import listing

    with Progress() as progress:
        if verify:
            progress.show(f"reading {directory} ...")
        try:
            rows = listing.list_checkpoints(directory, verify=verify)
        except CheckpointError as error:
            return StoredCheckpoints(directory=str(directory), problem=error.what)
    found = tuple(StoredCheckpoint(**msgspec.structs.asdict(row)) for row in rows)
    return StoredCheckpoints(directory=str(directory), checkpoints=found)


async def _of_job(settings: Settings, job: str, *, is_here: bool) -> StoredCheckpoints:
    async with settings.connect() as api:
        try:
            require_known("job", job, await api.job_names())
        except UsageError as error:
            if is_here:
                error.hint = f"for the directory of this name say ./{job}"
            raise
        return await api.checkpoints(job)


@click.command()
@click.argument("checkpoint", metavar="JOB|CHECKPOINT", shell_complete=complete_job)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
@json_option
@click.pass_obj
def export(settings: Settings, checkpoint: str, out: Path, force: bool, as_json: bool) -> None:
    """Write the model of CHECKPOINT to OUT, one .safetensors file that plain torch loads.

    CHECKPOINT is the directory of one, or of several: then the newest complete one is meant. What
    is no path and no directory here is a JOB, whose directory must be on this machine too. All of
    it is checked first. The names are those of the model's state_dict: parameters, frozen ones too,
    buffers, and tied weights under each of their names. What no safetensors file can have, such as
    complex128, is named on stderr.

    \b
    Example:
      elasticps checkpoint export mnist mnist.safetensors
      elasticps checkpoint export ./saved mnist.safetensors
      elasticps checkpoint export saved/round-00000200 mnist-200.safetensors

    \b
    Exit codes:
      0    OUT is there, whole and on the disk
      1    CHECKPOINT is damaged or missing, the cluster cannot be reached,
           or OUT cannot be written
      2    no such job, OUT is no .safetensors name, or it exists without --force
    """
    from elasticps.checkpoint.directory import newest
    from elasticps.checkpoint.export import export as written

    place = checkpoint
    if not (_is_path(checkpoint) or Path(checkpoint).exists()):
        answer = run_async(_of_job(settings, checkpoint, is_here=False))
        _require_readable(answer)
        place = answer.directory
    with Progress() as progress:
        progress.show(f"checking {place} ...")
        try:
            made = written(newest(_place(place)), out, force=force)
        except CheckpointError as error:
            if error.field == "resume":  # in the words of this command's arguments
                error.field = "checkpoint"
            raise
    if as_json:
        print_json(made)
        return
    size = human_bytes(made.nbytes)
    click.echo(f"{made.path}: {made.tensors} tensors, {size}, round {made.round} of {made.job}")
    for name, dtype in made.left_out.items():
        click.echo(f"{name} is not in it: no checkpoint has tensors of {dtype}", err=True)


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("directory")
@click.option("--keep-names", is_flag=True, help="Leave module. and _orig_mod. before the names.")
@json_option
def import_(file: Path, directory: str, keep_names: bool, as_json: bool) -> None:
    """Make a checkpoint in DIRECTORY of the weights in FILE: what a job can begin with.

    FILE is a .safetensors file, or one of torch (.pt, .pth, .bin) that holds a state_dict; that is
    read with weights_only=True and cannot run code. The job begins at round 0 with these values
    and with no optimizer state. Names, shapes and dtypes must be those of its model. A prefix that
    DDP or torch.compile has put before all names is taken away. What no checkpoint can hold is left
    out, and named.

    \b
    Example:
      elasticps checkpoint import mnist.safetensors start
      elasticps run --resume start train.py

    \b
    Exit codes:
      0    it is written
      1    FILE cannot be read, or DIRECTORY cannot be written
    """
    from importlib.metadata import version

    from elasticps.checkpoint.weights_file import import_weights

    made = import_weights(
        file, _place(directory), version=version("elasticps"), keep_names=keep_names
    )
    if made.prefix:
        click.echo(f"note: the names are without {made.prefix} here (--keep-names)", err=True)
    if made.left_out:
        left_out = listed([f"{name} ({what})" for name, what in made.left_out.items()])
        click.echo(f"warning: left out: {left_out}", err=True)
    if as_json:
        print_json(made)
        return
    click.echo(f"{made.path}: {made.tensors} tensors, {human_bytes(made.nbytes)}, round 0")
