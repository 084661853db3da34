"""One question to a placement: what crosses the pipe to its process and back."""

from __future__ import annotations

import msgspec

from elasticps.api.choice import load_choice
from elasticps.api.placement import Placement, Situation
from elasticps.api.plugins import PLACEMENTS
from elasticps.core.ids import BlockId, ServerId
from elasticps.errors import ElasticError

MAX_REASON = 300


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """``error`` says in one line why there is no proposal; empty when there is one."""

    proposal: dict[BlockId, tuple[ServerId, ...]] = {}
    error: str = ""


def answer(choice: str, question: bytes) -> Answer:
    """Have the placement that ``choice`` spells answer; whatever is wrong with it is the answer."""
    situation = msgspec.msgpack.decode(question, type=Situation)
    try:
        plugin = load_choice(PLACEMENTS, choice, Placement, "placement")  # type: ignore[type-abstract]
        proposal = plugin.propose(situation)
        return msgspec.convert(
            {"proposal": {block: tuple(servers) for block, servers in proposal.items()}}, Answer
        )
    except ElasticError as error:
        return Answer(error=_line(str(error)))
    except (Exception, SystemExit) as error:
        return Answer(error=_line(f"{type(error).__name__}: {error}"))


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_REASON else line[:MAX_REASON] + " ..."
