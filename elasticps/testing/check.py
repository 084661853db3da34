"""The quick cases of one plugin: ``python -m elasticps.testing.check GROUP NAME[:KEY=VALUE,...]``.

A process of its own, because a plugin may hang or end it; ``daemon.plugin_check`` starts it and
reads what it says on standard output: a line of JSON before each case and one for its end.
"""

from __future__ import annotations

import os
import sys

import msgspec

from elasticps.errors import ElasticError
from elasticps.server.main import warm_up
from elasticps.testing.kit import cases_of, subject_of

MAX_REASON = 4000


def main(group: str, text: str) -> None:
    """Check until a case fails; what the plugin itself prints goes to standard error."""
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        os.dup2(2, 1)

        def say(**row: str) -> None:
            out.write(msgspec.json.encode(row) + b"\n")

        try:
            subject = subject_of(text, group)
            cases = cases_of(subject.group)
            warm_up()
            for case in cases:
                if case.quick:
                    say(begins=case.name)
                    subject.check(case)
        except ElasticError as error:
            say(broken=str(error)[:MAX_REASON])
        else:
            say(passed=text)


if __name__ == "__main__":
    main(*sys.argv[1:])
