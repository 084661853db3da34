"""``elasticps token``: who may use the API, kept as hashes in a file that every daemon has."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click

from elasticps.cli.options import Command, json_option
from elasticps.cli.output import print_json

ROLES = ("read", "submit", "admin")
MAX_DAYS = 36_500


def _tokens_option(command: Command) -> Command:
    option: Callable[[Command], Command] = click.option(
        "--tokens",
        "path",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="ELASTICPS_TOKENS",
        show_envvar=True,
        required=True,
        help="The file of tokens, the daemons' own --tokens.",
    )
    return option(command)


@click.group()
def token() -> None:
    """Make, list and revoke the tokens of the API's users.

    The file holds hashes alone. Every node has a copy; a daemon takes up a new one at once.

    \b
    Example:
      elasticps token create alice --role submit --tokens tokens.json
      elasticps token list --tokens tokens.json
    """


@token.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(ROLES),
    required=True,
    help="read: look. submit: also jobs, and to cancel one's own. admin: all.",
)
@click.option("--days", type=click.IntRange(1, MAX_DAYS), help="How long it is good.  [for ever]")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the token to this file, mode 0600, and not to the terminal.",
)
@json_option
@_tokens_option
def create(
    name: str, role: str, days: int | None, out: Path | None, as_json: bool, path: Path
) -> None:
    """Make a token for NAME. It is shown once and kept nowhere.

    \b
    Example:
      elasticps token create alice --role submit --tokens tokens.json --out alice
      elasticps --token-file alice --ca ca.pem --api https://10.0.0.7:7400 jobs

    \b
    Exit codes:
      0    made
      1    a file cannot be written
      2    NAME has one already, or the file of tokens is none
    """
    from elasticps.errors import UsageError
    from elasticps.security.files import write_new
    from elasticps.security.tokens import Role, create_token

    if out is not None and out.exists():
        raise UsageError("the file exists, and is not overwritten", where=str(out), field="out")
    made = create_token(path, name, Role(role), days=days)
    if out is not None:
        write_new(out, made.encode() + b"\n")
    if as_json:
        shown = {"token": made} if out is None else {"path": str(out)}
        print_json({"name": name, "role": role, **shown})
    else:
        click.echo(made if out is None else f"{out}  the token of {name}, for {role}")


@token.command(name="list")
@json_option
@_tokens_option
def list_(as_json: bool, path: Path) -> None:
    """Whose tokens there are, and what they are for.

    \b
    Example:
      elasticps token list --tokens tokens.json

    \b
    Exit codes:
      0    listed
      2    the file of tokens is none
    """
    from elasticps.security.tokens import read_tokens

    entries = read_tokens(path)
    if as_json:
        rows = [
            {
                "name": entry.name,
                "role": entry.role.value,
                "created_unix": entry.created_unix,
                "expires_unix": entry.expires_unix,
            }
            for entry in entries
        ]
        print_json({"tokens": rows})
        return
    for entry in entries:
        click.echo(f"{entry.name:20} {entry.role.value:7} {_until(entry.expires_unix)}")


@token.command()
@click.argument("name")
@json_option
@_tokens_option
def revoke(name: str, as_json: bool, path: Path) -> None:
    """Take NAME's token back: where the file is copied to, it is refused from then on.

    \b
    Example:
      elasticps token revoke alice --tokens tokens.json

    \b
    Exit codes:
      0    revoked
      1    the file cannot be written
      2    NAME has none
    """
    from elasticps.security.tokens import revoke_token

    revoke_token(path, name)
    if as_json:
        print_json({"name": name, "revoked": True})
    else:
        click.echo(f"the token of {name} is revoked")


def _until(expires_unix: float | None) -> str:
    if expires_unix is None:
        return "until it is revoked"
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(expires_unix))
    return f"until {when}" if expires_unix > time.time() else f"over since {when}"
