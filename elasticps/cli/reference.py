"""The reference of all commands as Markdown, out of their own help: docs/cli.md.

``python -m elasticps.cli.reference > docs/cli.md`` writes it anew; a test holds the page to it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from elasticps.cli.main import cli

WIDTH = 80
INTRODUCTION = """\
# The command line

`elasticps` talks to the HTTP API of any daemon (`--api`, or `ELASTICPS_API`), to nothing else.
Every command has `--help` with an example; most have `--json`, which prints one JSON document, or
one a line where the answer is a stream. Tables fit 80 columns: what is too long is folded, never
cut. Colour is for terminals alone, and `NO_COLOR` turns it off. What takes longer than a moment
says how far it is on stderr.

An error is told once, on stderr, with what to do; no traceback is shown but with
`ELASTICPS_DEBUG=1`. Exit codes are the same everywhere:

| code | meaning |
| --- | --- |
| 0 | it worked |
| 1 | it failed: the job failed, or the cluster cannot be reached |
| 2 | it was asked for wrongly: a bad option, name or value |
| 130 | it was stopped by Ctrl-C (143: by SIGTERM) |

```
elasticps run --nodes 2 train.py                  # a job on this machine alone
elasticps submit --start-workers 2 train.py       # on a cluster
elasticps logs -f train-1 --rank 0
elasticps scale train-1 --workers 4
elasticps top
eval "$(elasticps completion bash)"
```

This page is made by `python -m elasticps.cli.reference > docs/cli.md`.
"""


def commands(
    group: click.Group = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below ``group`` with the words that call it, in alphabetical order."""
    for name, command in sorted(group.commands.items()):
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def reference() -> str:
    """The whole page."""
    parts = [INTRODUCTION, _section((), cli)]
    parts += [_section(path, command) for path, command in commands()]
    return "\n".join(parts)


def _section(path: tuple[str, ...], command: click.Command) -> str:
    # As it is called: below the root, whose settings a command inherits.
    context = click.Context(
        cli, info_name="elasticps", terminal_width=WIDTH, **cli.context_settings
    )
    if path:
        own = {"terminal_width": WIDTH, **command.context_settings}
        context = click.Context(command, info_name=" ".join(path), parent=context, **own)
    words = " ".join(("elasticps", *path))
    return f"## {words}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
