"""Who reads a parameter whose new values are on their way waits for them, and for no others."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from torch import nn

from elasticps.errors import UsageError
from elasticps.worker.forward_overlap import Arrivals, grouped
from tests.support.processes import wait_until


class Model(nn.Module):
    """Two layers, a weight that is read behind its module's back, and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.places = nn.Embedding(4, 2)
        self.memory = nn.LSTM(2, 2, batch_first=True)
        self.reached: list[str] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = self.first(inputs)
        self.reached.append("second")
        inputs = self.second(inputs)
        self.reached.append("places")
        inputs = inputs + self.places.weight[0]
        self.reached.append("memory")
        found: torch.Tensor = self.memory(inputs)[0]
        self.reached.append("end")
        return found


class World:
    """A guarded model whose values come when the test says so."""

    def __init__(self) -> None:
        self.model = Model()
        self.parameters = dict(self.model.named_parameters())
        self.readings: dict[str, Future[None]] = {}
        self.arrivals = Arrivals(list(self.parameters.values()), self._read, Future.result)
        self.arrivals._groups = [(index,) for index in range(len(self.parameters))]
        self.arrivals.guard(self.model)

    def _read(self, indices: Sequence[int]) -> Future[None]:
        names = list(self.parameters)
        reading = self.readings[names[indices[0]]] = Future()
        return reading

    def bring(self, prefix: str = "") -> None:
        for name, reading in self.readings.items():
            if name.startswith(prefix) and not reading.done():
                with torch.no_grad():
                    self.parameters[name].fill_(7.0)
                reading.set_result(None)


def in_thread(act: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(act()), daemon=True)
    thread.start()
    return thread, found


def test_each_layer_waits_for_its_own_values_and_for_no_others() -> None:
    world = World()
    world.arrivals.expect()
    model, reached = world.model, world.model.reached
    thread, found = in_thread(lambda: model(torch.ones(1, 3, 2)))
    for part, next_part in (
        ("first", "second"),
        ("second", "places"),
        ("places", "memory"),
        ("memory", "end"),
    ):
        assert next_part not in reached
        world.bring(part)
        wait_until(lambda next_part=next_part: next_part in reached)
    thread.join()
    whole = Model()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.fill_(7.0)
    assert torch.equal(found[0], whole(torch.ones(1, 3, 2)))


READS: dict[str, Callable[[Model], Any]] = {
    "state_dict": lambda model: model.state_dict()["memory.bias_hh_l0"].clone(),
    "parameters": lambda model: list(model.parameters())[-1].clone(),
    "attribute": lambda model: model.memory.bias_hh_l0.clone(),
    "get_parameter": lambda model: model.get_parameter("memory.bias_hh_l0").clone(),
    "copy": lambda model: copy.deepcopy(model).memory.bias_hh_l0.clone(),
    "to": lambda model: model.double().memory.bias_hh_l0.float(),
}


@pytest.mark.parametrize("read", READS)
def test_whoever_takes_a_parameter_out_of_the_model_gets_its_new_values(read: str) -> None:
    world = World()
    world.arrivals.expect()
    thread, found = in_thread(lambda: READS[read](world.model))
    thread.join(0.02)
    assert not found
    world.bring()
    thread.join()
    assert torch.equal(found[0], torch.full((8,), 7.0))


def test_a_copy_of_the_model_waits_for_nothing() -> None:
    world = World()
    twin = copy.deepcopy(world.model)
    world.arrivals.expect()
    assert type(twin.first._parameters) is dict
    twin(torch.ones(1, 3, 2))
    assert twin.first.weight.shape == (2, 2)
    world.bring()


def test_a_reading_that_failed_is_told_to_whoever_waits() -> None:
    world = World()
    world.arrivals.expect()
    world.readings["first.weight"].set_exception(RuntimeError("the job is over"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="over"):
            world.model(torch.ones(1, 3, 2))


def test_a_module_that_python_does_not_run_is_refused() -> None:
    compiled = nn.Sequential(nn.Linear(2, 2))
    compiled[0]._compiled_call_impl = object()  # as compile() does
    arrivals = Arrivals(list(compiled.parameters()), lambda _: Future(), Future.result)
    with pytest.raises(UsageError, match="module 0") as refused:
        arrivals.guard(compiled)
    assert refused.value.field == "overlap_forward"


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([], []),
        ([5], [(0,)]),
        ([1, 1, 1, 1], [(0, 1), (2, 3)]),
        ([9, 1, 1, 1], [(0,), (1, 2, 3)]),
        ([0, 0], [(0, 1)]),
    ],
)
def test_parameters_are_read_in_order_in_groups_of_about_one_size(
    sizes: list[int], groups: list[tuple[int, ...]]
) -> None:
    assert grouped(sizes, 2) == groups
