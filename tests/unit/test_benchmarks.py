"""The benchmarks' own promises: turns, verdicts on every element, a page that is written anew."""

from __future__ import annotations

import pytest
import torch

from benchmarks import copies, ddp, goals, int8_link, push_pull, quick, scaling, server_memory
from benchmarks.__main__ import BEGIN, END, write
from benchmarks.cluster import used_transports
from benchmarks.contest import Entry, Pace, Result, compete, ratio
from benchmarks.peers import PEERS
from benchmarks.report import Table
from benchmarks.workload import GRADIENTS, Size, apply, first_values, gradients, wrong_elements

NBYTES = 40_000
SIZE = Size(nbytes=NBYTES, block_bytes=4096)
PACE = Pace(rounds=2, steps=2)


def sized(name: str, module: str, *options: str) -> Entry:
    arguments = ("--nbytes", str(NBYTES), "--block-bytes", "4096", *options)
    return Entry(name=name, module=module, options=arguments)


@pytest.mark.parametrize("transport", ["local", pytest.param("tcp", marks=pytest.mark.long)])
def test_a_bare_socket_moves_every_element(transport: str) -> None:
    (found,) = compete([sized("bare", "benchmarks.bare", "--transport", transport)], PACE).values()
    assert not found.unavailable
    assert found.more["wrong"] == 0
    assert found.more["checked"] == NBYTES // 4
    assert [len(turn) for turn in found.turns] == [2, 2]


def test_a_contestant_that_cannot_run_is_left_out_and_says_why() -> None:
    entries = [
        sized("broken", "benchmarks.no_such_module"),
        Entry(
            name="copy",
            module="benchmarks.memory",
            options=("--nbytes", str(NBYTES), "--threads", "1"),
        ),
    ]
    found = compete(entries, PACE)
    assert "no_such_module" in found["broken"].unavailable
    assert len(found["copy"].seconds) == 4


@pytest.mark.long
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_moves_every_element(name: str) -> None:
    for module in {"ray": "ray", "pyzmq": "zmq", "grpc.aio": "grpc"}.get(name, "torch").split():
        pytest.importorskip(module, reason=f"{module} is in the extra [bench], for make bench")
    (found,) = compete([sized(name, PEERS[name])], PACE).values()
    assert not found.unavailable
    assert found.more["wrong"] == 0


SUBJECTS = {
    "shm_vs_roofline": lambda: push_pull.measure(
        push_pull.Plan(nbytes=1 << 20, rounds=2, steps=2, small_rounds=2, small_steps=5, peers=())
    ),
    "step_vs_ddp": lambda: ddp.measure(ddp.Plan(models=("charlm",), rounds=2, steps=1)),
    "r2_vs_r1": lambda: copies.measure(copies.Plan(nbytes=1 << 20, rounds=2, steps=2)),
    "server_rss_vs_needed": lambda: server_memory.measure(server_memory.Plan(nbytes=1 << 24)),
    "int8_speedup_1gbit": lambda: int8_link.measure(
        int8_link.Plan(nbytes=1 << 20, rounds=2, steps=1)
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("key", SUBJECTS)
def test_a_subject_measures_its_figure_at_a_tiny_size(key: str) -> None:
    found = SUBJECTS[key]()
    if key == "int8_speedup_1gbit" and "netns" not in found["int8_link"]:
        pytest.skip(f"no link can be made slow here: {found['int8_link']}")
    assert found[key] > 0


def test_an_element_that_was_not_written_or_is_a_step_old_is_found() -> None:
    value = first_values(SIZE)
    for step in range(3):
        apply(value, gradients(SIZE)[step % GRADIENTS])
    assert wrong_elements(value, SIZE, 3) == 0
    value[17] = torch.nan
    assert wrong_elements(value, SIZE, 3) == 1
    assert wrong_elements(value, SIZE, 2) > SIZE.numel * 0.9


def test_a_ratio_is_of_turns_that_were_beside_each_other() -> None:
    ours = Result(name="ours", turns=[[2.0], [20.0], [2.0]])
    its = Result(name="its", turns=[[1.0], [10.0], [1.0]])
    assert ratio(ours, its) == 2.0


def test_the_best_peer_is_the_fastest_of_those_that_ran() -> None:
    results = {
        push_pull.OURS: Result(name="elasticps", turns=[[1.0]], wall_s=1.0),
        "ray": Result(name="ray", turns=[[8.0]]),
        "pyzmq": Result(name="pyzmq", turns=[[4.0]]),
        "gloo": Result(name="gloo", unavailable="no"),
        push_pull.BARE: Result(name="bare", turns=[[0.5]]),
    }
    found = push_pull.ratios(results, 100, "tcp")
    assert (found["tcp_vs_best_peer"], found["tcp_best_peer"]) == (4.0, "pyzmq")
    assert found["tcp_vs_socket"] == 0.5


def test_only_what_falls_below_half_of_the_recorded_fails() -> None:
    recorded = dict.fromkeys(quick.RATIOS, 0.8)
    assert quick.below(dict.fromkeys(quick.RATIOS, 0.41), recorded) == []
    found = dict.fromkeys(quick.RATIOS, 0.8) | {"tcp_vs_socket": 0.39}
    del found["shm_vs_roofline"]
    assert quick.below(found, recorded) == ["shm_vs_roofline", "tcp_vs_socket"]


def test_every_recorded_ratio_is_there() -> None:
    import json

    assert set(json.loads(quick.RECORDED.read_text())) == set(quick.RATIOS)


def test_transports_are_read_from_a_servers_metrics() -> None:
    text = (
        'elasticps_server_received_bytes_total{node="a",transport="unix"} 1.5e+03\n'
        'elasticps_server_sent_bytes_total{node="a",transport="unix"} 500.0\n'
        'elasticps_server_sent_bytes_total{node="a",transport="tcp"} 3.0\n'
    )
    assert used_transports(text) == {"unix": 2000.0, "tcp": 3.0}


def test_a_goal_is_judged_on_its_side() -> None:
    found = {"shm_vs_best_peer": 5.0, "r2_vs_r1": 1.7, "cpu_s_per_gb": 0.4}
    verdicts = {row[0]: row[3] for row in goals.table(found).rows}
    assert verdicts["shm_vs_best_peer"] == "reached"
    assert verdicts["r2_vs_r1"] == "missed"
    assert verdicts["cpu_s_per_gb"] == ""
    assert verdicts["step_vs_ddp"] == "not measured"


def test_a_page_keeps_all_but_its_table(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\nafter\n")
    found = {"date": "today", "cpu": "a cpu", "cores": 2, "load_1m": 0.1, "python": "3.11"}
    table = Table(title="of something", columns=("", "value"))
    table.add("one", 0.12345)
    write(page, found, [table])
    write(page, found, [table])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.count("| one | 0.1235 |") == 1


def test_scaling_leaves_out_what_does_not_fit() -> None:
    small = [point for point in scaling.points(1 << 30) if scaling.fits(point, 1 << 30)]
    assert max(point.x for point in small if point.curve == "size") < 64_000_000
    large = [point for point in scaling.points(64 << 30) if scaling.fits(point, 64 << 30)]
    assert max(point.x for point in large if point.curve == "size") == 400_000_000
    blocks = [point.x for point in large if point.curve == "blocks"]
    assert min(blocks) <= 10
    assert max(blocks) > 90_000
