"""The quick cases of one plugin: ``python -m elasticps.testing.check GROUP NAME[:KEY=VALUE,...]``.

A process of its own, because a plugin may hang or end it; ``daemon.plugin_check`` starts it and
hears what it says.
"""

from __future__ import annotations

import sys

from elasticps.api.lazy_compiler import leave_compiler_unloaded
from elasticps.api.trial import Row, telling
from elasticps.errors import ElasticError
from elasticps.testing.kit import cases_of, subject_of


def main(group: str, text: str) -> None:
    """Check until a case fails."""
    with telling() as say:
        try:
            subject = subject_of(text, group)
            cases = cases_of(subject.group)
            leave_compiler_unloaded()
            for case in cases:
                if case.quick:
                    say(Row(begins=case.name))
                    subject.check(case)
        except ElasticError as error:
            say(Row(broken=str(error)))
        else:
            say(Row(passed=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
