"""Auto: data parallelism that measures in its first steps what every other choice would cost."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from elasticps.api.job_codec import load_codec
from elasticps.api.strategy import Strategy, Worker
from elasticps.core.choices import CODECS
from elasticps.core.measured import DONE, CodecSpeed, Measured, to_metrics
from elasticps.errors import JobFailed, MembershipChanged, PeerUnavailable, UsageError
from elasticps.strategies.flat import flattened, pieces

STEPS = 5
"""Steps that are measured after a first one, which pays for connections and caches."""
BUDGET_S = 10.0
"""No further step is measured after so long."""
PROBE_ELEMENTS = 1 << 20
"""The most that a probe among workers has, of float32: 4 MiB."""
SEED = 1


class Auto(Strategy):
    """Trains as ``data-parallel`` does, and logs a ``core.measured.Measured`` as ``auto/`` numbers.

    ``elasticps run`` and ``submit`` begin a job with it, read the numbers, and begin the job anew
    with what they have chosen by them: ``approximate`` is for that choice. Only who is there from
    the job's first round on measures, and only until the members change. The parameters are those
    of ``data-parallel``, to the bit. Between the steps that are measured are rounds without
    tensors, to know what a vote costs.
    """

    uses_peers = True

    def __init__(self, approximate: bool = False) -> None:
        if not isinstance(approximate, bool):
            raise UsageError(
                f"approximate={approximate}", field="approximate", limit="true or false"
            )
        self._steps_left = 0
        self._generation: int | None = None
        self._begun_at = self._ended_at = 0.0
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._codecs: dict[str, CodecSpeed] = {}

    def begin(self, worker: Worker) -> None:
        if worker.consistency != "sync" or worker.backup_workers:
            raise UsageError(
                "what is measured are whole rounds",
                field="consistency",
                limit="sync consistency without backup workers",
            )
        self._steps_left = STEPS + 1 if worker.round == 0 else 0
        self._begun_at = self._ended_at = time.perf_counter()

    def step(self, worker: Worker) -> None:
        measures = self._measures(worker) and self._tried(self._among_workers, worker)
        begun = time.perf_counter()
        worker.exchange()
        if measures:
            self._seconds["exchange"].append(time.perf_counter() - begun)
            self._tried(self._with_shards, worker)
        self._ended_at = time.perf_counter()

    def _tried(self, measure: Callable[[Worker], None], worker: Worker) -> bool:
        """False where the members have changed meanwhile: nothing more is measured."""
        try:
            measure(worker)
        except (MembershipChanged, PeerUnavailable):
            self._stop(worker)
            return False
        except JobFailed:
            if not worker.leaving:  # else it has left, by a round of the measuring
                raise
            return False
        return True

    def _measures(self, worker: Worker) -> bool:
        """All members of a generation come to the same answer."""
        if self._generation is None:  # only now are all who begin together members
            self._generation = worker.generation
        if self._steps_left and (worker.generation != self._generation or worker.ends_data):
            self._stop(worker)
        return self._steps_left > 0

    def _stop(self, worker: Worker) -> None:
        self._steps_left = 0
        worker.local_optimizer.state.clear()
        worker.log(**{DONE: 1.0})

    # -- measuring ------------------------------------------------------------------------------

    def _timed(self, name: str, act: Callable[[], object]) -> None:
        begun = time.perf_counter()
        act()
        self._seconds[name].append(time.perf_counter() - begun)

    def _meet(self, worker: Worker, word: float = 0.0) -> float:
        """Wait until all are here; returns the sum of their words.

        Raises MembershipChanged where a round has ended with others than it began: who has joined
        by it does not measure, and is not to be waited for.
        """
        if worker.generation != self._generation:
            raise MembershipChanged("the set of workers changed while they measured")
        words = torch.tensor([word])
        worker.peers.sum(words)
        return float(words)

    def _among_workers(self, worker: Worker) -> None:
        self._meet(worker)
        self._seconds["compute"].append(time.perf_counter() - self._ended_at)
        parameters = list(worker.parameters.values())
        flat = flattened(parameters)
        self._timed(
            "copy", lambda: [each / 2 for each in pieces(flattened(parameters), parameters)]
        )
        if not self._codecs:
            self._codecs = _speeds(parameters)
        if worker.world == 1:
            return
        probe = flat[:PROBE_ELEMENTS].to(torch.float32)
        self._probe(worker, "small", probe[:1])
        self._probe(worker, "probe", probe)
        self._meet(worker)

    def _probe(self, worker: Worker, name: str, tensor: torch.Tensor) -> None:
        """Sum a tensor of this size, and fetch it from the next worker, all at the same time."""
        peers, summed = worker.peers, torch.zeros_like(tensor)
        other = (worker.rank + 1) % worker.world
        peers.put(name, tensor)
        self._meet(worker)
        self._timed(f"sum {name}", lambda: peers.sum(summed))
        self._meet(worker)
        self._timed(f"fetch {name}", lambda: peers.fetch(other, name))

    def _with_shards(self, worker: Worker) -> None:
        """What there is to the exchange, by itself, and the optimizer's step."""
        parameters = list(worker.parameters.values())
        self._meet(worker)
        self._timed("pull", worker.pull)
        before = [item.detach().clone() for item in parameters]
        self._timed("optimizer", worker.local_optimizer.step)
        with torch.no_grad():
            for item, saved in zip(parameters, before, strict=True):
                item.copy_(saved)
        self._meet(worker)
        self._timed("vote", worker.agree)
        self._note(worker)

    def _note(self, worker: Worker) -> None:
        """A step is measured: say what is known by now, and whether that is all."""
        is_late = time.perf_counter() - self._begun_at > BUDGET_S
        are_late = self._meet(worker, float(is_late)) > 0
        self._steps_left -= 1
        worker.log(**to_metrics(self._measured(worker)))
        if are_late or not self._steps_left:
            self._stop(worker)

    def _measured(self, worker: Worker) -> Measured:
        sizes = [item.nbytes for item in worker.parameters.values()]
        seconds = {name: _typical(each) for name, each in self._seconds.items()}
        probe_bytes = min(sum(sizes), 4 * PROBE_ELEMENTS)
        share = sum(sizes) / probe_bytes

        def whole(name: str) -> float:
            small = seconds.get(f"{name} small", 0.0)
            return small + max(0.0, seconds.get(f"{name} probe", 0.0) - small) * share

        round_trip_s = seconds.get("fetch small", 0.0)
        fetched_s = seconds.get("fetch probe", 0.0)
        # A large tensor takes a second request, once its size is known.
        moved_s = max(fetched_s - 2 * round_trip_s, fetched_s / 10)
        return Measured(
            steps=len(self._seconds["compute"]),
            workers=worker.world,
            model_bytes=sum(sizes),
            largest_parameter_bytes=max(sizes),
            compute_s=seconds["compute"],
            optimizer_s=seconds["optimizer"],
            copy_s=seconds["copy"],
            exchange_s=seconds["exchange"],
            pull_s=seconds["pull"],
            vote_s=seconds["vote"],
            sum_s=whole("sum"),
            fetch_s=whole("fetch"),
            bytes_per_s=probe_bytes / moved_s if moved_s else 0.0,
            round_trip_s=round_trip_s,
            codecs=self._codecs,
        )


def _typical(seconds: list[float]) -> float:
    """The mean but for the first, which connects and comes before the first batch, and the worst.

    No median: what is predicted are sums, and medians do not add up where times are skewed.
    """
    kept = sorted(seconds[1:] or seconds)
    return statistics.fmean(kept[:-1] or kept)


def _speeds(parameters: Sequence[torch.Tensor]) -> dict[str, CodecSpeed]:
    """What each codec takes for such a gradient, of which at most a probe is coded.

    A parameter at a time, for each block costs something, however small it is.
    """
    samples: list[torch.Tensor] = []
    room = PROBE_ELEMENTS
    for parameter in parameters:
        sample = parameter.detach().reshape(-1)[:room].to(torch.float32)
        room -= sample.numel()
        if sample.numel():
            samples.append(sample)
    return {text: _speed(text, samples, sum(map(torch.numel, parameters))) for text in CODECS}


def _speed(text: str, samples: Sequence[torch.Tensor], numel: int) -> CodecSpeed:
    codec = load_codec(text)
    assert codec is not None
    for _ in range(2):  # the first is a warm-up
        begun = time.perf_counter()
        coded = [codec.encode(sample, SEED) for sample in samples]
        encoded = time.perf_counter()
        for each, sample in zip(coded, samples, strict=True):
            codec.decode(each, sample.numel())
        decode_s = time.perf_counter() - encoded
    # Error feedback decodes at the worker too, to know what was lost.
    encode_s = encoded - begun + (decode_s if codec.error_feedback else 0.0)
    share = numel / sum(map(torch.numel, samples))
    return CodecSpeed(
        fraction=sum(map(len, coded)) / sum(sample.nbytes for sample in samples),
        encode_s=share * encode_s,
        decode_s=share * decode_s,
    )
