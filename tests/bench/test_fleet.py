"""The simulation of a fleet: its counts are conserved, and a perfect store encodes each image once."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import pytest

from vitcache.bench import plot, run
from vitcache.bench.claims import bench_fleet
from vitcache.bench.claims.bench_fleet import CASES, DISK, ENCODES, LINKS, LONG, NO_RULE, FleetCase, stores
from vitcache.bench.traffic.fleet import (
    AT_RANDOM,
    BY_SESSION,
    GIB,
    Missing,
    make_requests,
    missing_images,
)
from vitcache.bench.traffic.shared_store import BREAKER_S, Below, Link, replay
from vitcache.bench.traffic.traces import SCREEN_TOKENS, Request, image

ROW_BYTES = 32 * 1024
PERFECT = Link(inf, inf)
ROUTES = (BY_SESSION, AT_RANDOM)
METRICS = {
    *("encode_s", "rows_s", "late_share", "machine_mb_per_s", "store_gb_per_s", "link_share", "keys_per_s")
}
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return make_requests(4, 0.5, 60.0)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """The result file of the smoke cases, and its rows."""
    directory = tmp_path_factory.mktemp("results")
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    options = ["--cases", "smoke", "--out", str(directory), "--bench", "fleet"]
    assert run.run(parser.parse_args(options)) == 0
    (path,) = directory.glob("*.json")
    return path, json.loads(path.read_text())


def unlimited(requests: list[Request], machines: int, route: str) -> list[Missing]:
    """The missing images of machines whose caches hold every image."""
    return missing_images(requests, machines, route, ROW_BYTES, device_bytes=1 << 50)


def one_image(at_s: float, machine: int = 0, number: int = 0, rows: int = SCREEN_TOKENS[0]) -> Missing:
    return Missing(at_s, machine, [image(number, rows)])


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", [DISK, *LINKS, NO_RULE, LONG])
def test_replay_encodes_and_hits_add_up_to_the_lookups(
    requests: list[Request], route: str, name: str
) -> None:
    missing = missing_images(requests, 4, route, ROW_BYTES, device_bytes=GIB, host_bytes=GIB)
    without = replay(missing, ROW_BYTES, None)
    assert without.encodes == without.lookups == sum(len(batch.images) for batch in missing)
    counts = replay(missing, ROW_BYTES, stores(FleetCase(4, route, 32))[name])
    assert counts.lookups == without.lookups
    assert counts.hits + counts.encodes == counts.lookups
    assert counts.keys <= counts.lookups
    assert counts.late <= counts.encodes
    assert counts.encode_s <= without.encode_s + 1e-9
    assert counts.fetched_bytes == sum(counts.sent_bytes.values())


@pytest.mark.parametrize("route", ROUTES)
def test_more_machines_without_a_store_never_encode_fewer_images(requests: list[Request], route: str) -> None:
    encodes = [
        replay(unlimited(requests, machines, route), ROW_BYTES, None).encodes
        for machines in (1, 2, 4, 8, 16, 32)
    ]
    assert all(fewer <= more for fewer, more in pairwise(encodes))
    assert encodes[0] == len({access.key for request in requests for access in request.images})
    assert encodes[0] < encodes[-1]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("machines", [1, 4, 32])
def test_store_without_limits_encodes_each_image_once(
    requests: list[Request], route: str, machines: int
) -> None:
    missing = unlimited(requests, machines, route)
    counts = replay(missing, ROW_BYTES, Below(PERFECT, inf, nodes=2, single_flight=True))
    assert counts.encodes == len({access.key for request in requests for access in request.images})
    assert counts.late == 0
    assert counts.stored_bytes == ROW_BYTES * sum(
        {access.key: access.num_rows for request in requests for access in request.images}.values()
    )


def test_store_without_single_flight_encodes_an_image_on_two_machines_at_once() -> None:
    missing = [one_image(0.0, machine=0), one_image(0.001, machine=1), one_image(1.0, machine=2)]
    assert replay(missing, ROW_BYTES, Below(PERFECT, inf)).encodes == 2
    assert replay(missing, ROW_BYTES, Below(PERFECT, inf, single_flight=True)).encodes == 1


def test_disk_of_another_machine_gives_no_hit() -> None:
    missing = [one_image(0.0, machine=0), one_image(1.0, machine=1), one_image(2.0, machine=0)]
    disks = replay(missing, ROW_BYTES, Below(PERFECT, inf, is_shared=False))
    shared = replay(missing, ROW_BYTES, Below(PERFECT, inf))
    assert (disks.hits, shared.hits) == (1, 2)


def test_rule_refuses_an_image_whose_transfer_takes_more_than_its_part_of_the_encode() -> None:
    [picture] = one_image(0.0).images
    size = picture.num_rows * ROW_BYTES
    at_limit = size / (0.5 * picture.encode_ms / 1e3)
    for rate, is_worth in ((1.01 * at_limit, True), (0.99 * at_limit, False)):
        below = Below(Link(rate, rate), inf, worth=0.5)
        assert below.is_worth(picture, ROW_BYTES) is is_worth
        counts = replay([one_image(0.0), one_image(9.0, machine=1)], ROW_BYTES, below)
        assert (counts.keys, counts.hits, counts.stored_bytes) == ((2, 1, size) if is_worth else (0, 0, 0))


def test_transfers_of_one_link_wait_for_each_other() -> None:
    size = SCREEN_TOKENS[0] * ROW_BYTES
    below = Below(Link(size, size), inf)  # a transfer takes one second
    fill = one_image(0.0)
    at_once = [one_image(10.0, machine) for machine in (1, 2, 3)]
    counts = replay([fill, *at_once], ROW_BYTES, below, begin_s=5.0)
    assert counts.rows_s == pytest.approx(1 + 2 + 3)
    apart = [one_image(10.0 * machine, machine) for machine in (1, 2, 3)]
    assert replay([fill, *apart], ROW_BYTES, below, begin_s=5.0).rows_s == pytest.approx(3)


def test_late_fetch_is_an_encode_and_opens_the_breaker_of_its_machine() -> None:
    size = SCREEN_TOKENS[0] * ROW_BYTES
    below = Below(Link(size, size), inf, deadline_s=0.5)
    fill = [one_image(0.0)]
    late = replay([*fill, one_image(10.0, 1)], ROW_BYTES, below, begin_s=5.0)
    assert (late.late, late.hits, late.encodes, late.keys) == (1, 0, 1, 1)
    assert late.rows_s == pytest.approx(0.5 + late.encode_s)
    for seconds, keys in ((11.0 + BREAKER_S - 0.1, 0), (11.0 + BREAKER_S, 1)):
        batches = [*fill, one_image(10.0, 1), one_image(seconds, 1)]
        assert replay(batches, ROW_BYTES, below, begin_s=10.5).keys == keys


def test_full_node_evicts_the_entry_that_was_used_longest_ago() -> None:
    size = SCREEN_TOKENS[0] * ROW_BYTES
    below = Below(PERFECT, 2 * size)
    seconds = iter(range(100))
    batches = [one_image(next(seconds), number=number) for number in (0, 1, 0, 2, 0, 1)]
    counts = replay(batches, ROW_BYTES, below)
    assert (counts.hits, counts.encodes) == (2, 4)


@pytest.mark.parametrize("route", ROUTES)
def test_missing_images_same_arguments_give_the_same_batches(route: str) -> None:
    first, second = (missing_images(make_requests(8, 0.2, 40.0), 8, route, ROW_BYTES) for _ in range(2))
    assert first == second
    assert first != missing_images(make_requests(8, 0.2, 40.0, seed=1), 8, route, ROW_BYTES)


def test_route_by_session_sends_all_requests_of_a_client_to_one_machine(requests: list[Request]) -> None:
    [(client, count)] = Counter(request.client for request in requests).most_common(1)
    alone = [request for request in requests if request.client == client]
    assert count > 1
    assert len({batch.machine for batch in unlimited(alone, 32, BY_SESSION)}) == 1
    machines = Counter(batch.machine for batch in unlimited(requests, 4, AT_RANDOM))
    assert len(machines) == 4


def test_fleet_bench_has_each_metric_for_all_contenders(results: tuple[Path, Rows]) -> None:
    _, rows = results
    assert {row["metric"] for row in rows} == METRICS
    assert {row["case"] for row in rows} == {case.name for case in CASES["smoke"]}
    contenders = {row["contender"] for row in rows if row["metric"] == "encode_s"}
    assert contenders == {ENCODES, DISK, *LINKS, NO_RULE, LONG}
    assert all(row["p20"] == row["value"] == row["p80"] for row in rows)


def test_fleet_bench_full_cases_have_the_machines_and_networks_of_the_claim() -> None:
    assert {case.machines for case in CASES["full"]} == {4, 8, 16, 32, 64}
    assert {case.route for case in CASES["full"]} == set(ROUTES)
    assert {"10 GbE", "25 GbE", "100 GbE"} <= set(LINKS)
    assert run.BENCHES["fleet"] is bench_fleet
    assert "fleet" not in run.names_for("cuda")


def test_plot_of_the_fleet_bench_says_that_it_is_a_simulation(results: tuple[Path, Rows]) -> None:
    pytest.importorskip("matplotlib")
    path, rows = results
    assert plot.plot(path).read_bytes().startswith(b"\x89PNG")
    assert plot.draw(rows).get_suptitle().startswith("Simulated: 8 machines")
