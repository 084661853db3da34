"""Can a shard server run a job's plugin? ``python -m elasticps.server.rehearsal GROUP CHOICE``.

A process of its own, because a plugin may hang or end it, and a shard server has other jobs'
blocks. An optimizer is chosen by its model in small (msgpack, as hexadecimal digits), the others by
their texts. Strategies and placements, which do not run there, are only made: do they take their
options?
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from elasticps.api.choice import load_choice
from elasticps.api.data_policy import DataPolicy
from elasticps.api.placement import Placement
from elasticps.api.plugins import DATA_POLICIES, PLACEMENTS
from elasticps.api.trial import Row, telling
from elasticps.core.ids import WorkerId
from elasticps.core.lending import Lending, settled
from elasticps.core.ranges import Range, Supply
from elasticps.errors import ElasticError


def rehearse_data_policy(text: str, say: Callable[[Row], None]) -> None:
    """Raise PluginError or whatever the policy raises."""
    say(Row(begins="import"))
    policy = load_choice(
        DATA_POLICIES,
        text,
        DataPolicy,  # type: ignore[type-abstract]
        "data_policy",
    )
    for count in (1, 3):
        say(Row(begins=f"samples for {count} workers"))
        members = tuple(WorkerId(number) for number in range(1, count + 1))
        asked = Lending(
            size=100, members=members, borrowers=members, wanted=10, unread=(Range(0, 100),)
        )
        settled(asked, policy.lend(asked), Supply())


def make_placement(text: str, say: Callable[[Row], None]) -> None:
    """Raise PluginError or whatever the placement raises."""
    say(Row(begins="import"))
    load_choice(PLACEMENTS, text, Placement, "placement")  # type: ignore[type-abstract]


def _rehearse(group: str, choice: str, say: Callable[[Row], None]) -> None:
    if group == DATA_POLICIES:
        rehearse_data_policy(choice, say)
    elif group == PLACEMENTS:
        make_placement(choice, say)
    else:
        from elasticps.server.tensor_rehearsal import rehearse

        rehearse(group, choice, say)


def main(group: str, choice: str) -> None:
    with telling() as say:
        try:
            _rehearse(group, choice, say)
        except ElasticError as error:
            say(Row(broken=str(error)))
        except Exception as error:  # a plugin may raise anything
            say(Row(broken=f"{type(error).__name__}: {error}"))
        else:
            say(Row(passed=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
