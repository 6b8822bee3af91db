"""What secure aggregation costs its parties, next to Flower's SecAgg+ on the same vectors.

Run: python benchmarks/aggregation.py [--quick] [--chart FILE.html] [--json]

All parties live in this process and take turns on one thread; what one of them would send is handed to the
others as bytes. So there is no network and no disk here: `rounds.py` has those. Times are processor time.

assay    `secagg.Member` and `secagg.Tally`, the code that live holders and the coordinator run. A session has
         keys and shares for 32 rounds; the first round of a run pays for all of them
flower   SecAgg+ of Flower 1.41: the functions of its client mod, and its server workflow's unmasking step on
         the same primitives (`flwr.common.secure_aggregation`); every holder is everybody's neighbour, as in
         Assay, and every round exchanges keys and shares anew. It is the peer for speed and not for safety,
         because it is broken: its masks come from 32 bits of seed, its keys are not signed, and a coordinator
         that calls a holder present and gone in one question is given both of its secrets

Both must give the sum of what went in, Flower up to its quantisation; otherwise the script fails.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", OMP_NUM_THREADS="1")

import numpy as np
from numpy.typing import NDArray

from assay.privacy.keys import Identity
from assay.privacy.secagg import SESSION_ROUNDS, SHARE_BYTES, VALUE_BOUND, Member, Tally, Terms, threshold

Integers = NDArray[np.int64]

CURVE = (5, 10, 25, 50, 100, 200)
CURVE_VALUES, CURVE_ROUNDS = 500, 3
MOST_FLOWER = 25  # its Shamir shares take minutes beyond
SERIES = (
    ("federated", "round", "a round"),
    ("pooled", "in_all", f"and 1/{SESSION_ROUNDS} of keys and shares"),
)
WHO = ("holder", "coordinator")
FLOWER_CLIP, FLOWER_LEVELS, FLOWER_MODULUS, FLOWER_WEIGHT = 8.0, 1 << 22, 1 << 32, 1000


@dataclass
class Clock:
    """Processor time in seconds by who worked on what, e.g. ``("holder", "set-up")``."""

    spent: dict[tuple[str, str], float] = field(default_factory=dict)

    @contextmanager
    def of(self, who: str, what: str) -> Iterator[None]:
        """Count what the block takes."""
        start = time.process_time()
        yield
        self.spent[who, what] = self.spent.get((who, what), 0.0) + time.process_time() - start

    def total(self) -> float:
        """Return the time of all parties together."""
        return sum(self.spent.values())


def inputs(holders: int, values: int) -> list[Integers]:
    """Return one vector for each holder, as large as values may be."""
    rng = np.random.default_rng(holders)
    return [rng.integers(-VALUE_BOUND, VALUE_BOUND, values, endpoint=True) for _ in range(holders)]


# Assay --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Session:
    """Everybody's state after keys and shares have been exchanged."""

    members: dict[str, Member]
    tally: Tally


def set_up(holders: int, clock: Clock) -> Session:
    """Exchange keys and shares of one session."""
    identities = {f"holder-{number:04d}": Identity.generate() for number in range(1, holders + 1)}
    terms = Terms(
        federation="f" * 64,
        run="0" * 32,
        session=0,
        study="5" * 64,
        keys={name: identity.public for name, identity in identities.items()},
    )
    members, adverts, shares = {}, {}, {}
    with clock.of("holder", "set-up"):
        for name, identity in identities.items():
            members[name] = Member(name=name, terms=terms, seed=os.urandom(32), identity=identity)
            adverts[name] = members[name].advert()
    with clock.of("coordinator", "set-up"):
        tally = Tally(terms, adverts)
    with clock.of("holder", "set-up"):
        for name, member in members.items():
            member.join(adverts)
            shares[name] = member.shares()
    with clock.of("coordinator", "set-up"):
        for name, blob in shares.items():
            tally.add_shares(name, blob)
    return Session(members=members, tally=tally)


def assay_round(session: Session, number: int, vectors: list[Integers], clock: Clock) -> None:
    """Add the vectors up; all holders answer.

    Raises:
        SystemExit: the sum is not their sum.
    """
    members, tally = session.members, session.tally
    names = tally.names
    model = hashlib.sha256(bytes(8 * vectors[0].size)).digest()
    question: dict[str, Any] = {"round": number, "rounds": SESSION_ROUNDS, "question": model, "active": names}
    masked, sent, opened = {}, {}, {}
    with clock.of("holder", "round"):
        for (name, member), values in zip(members.items(), vectors, strict=True):
            context = member.context(**question)
            masked[name] = member.masked(values, round=number, context=context, active=names)
            sent[name] = member.sent(number, context)
    with clock.of("coordinator", "round"):
        context = tally.context(**question)
        forwarded = {name: ciphertexts(tally, name, number) for name in names}
    with clock.of("holder", "round"):
        for name, member in members.items():
            opened[name] = member.open(
                round=number,
                context=context,
                active=names,
                survivors=names,
                tolerated=1,
                proofs=sent,
                ciphertexts=forwarded[name],
            )
    with clock.of("coordinator", "round"):
        total, _ = tally.unmask(round=number, context=context, active=names, masked=masked, opened=opened)
    if not np.array_equal(total, np.sum(vectors, axis=0)):
        raise SystemExit("Assay's sum is wrong")


def ciphertexts(tally: Tally, name: str, number: int) -> dict[str, bytes]:
    """Return by sender what everybody else encrypted for one holder and one round."""
    pieces, others = tally.ciphertexts_for(name, number, tally.names), [n for n in tally.names if n != name]
    return {n: pieces[SHARE_BYTES * i : SHARE_BYTES * (i + 1)] for i, n in enumerate(others)}


def assay(holders: int, values: int, rounds: int) -> Clock:
    """Run whole sessions as a training run does, set-up included."""
    clock, vectors, session = Clock(), inputs(holders, values), None
    for number in range(rounds):
        if session is None or number % SESSION_ROUNDS == 0:
            session = set_up(holders, clock)
        assay_round(session, number % SESSION_ROUNDS, vectors, clock)
    return clock


# Flower's SecAgg+ ---------------------------------------------------------------------------------


def flower(holders: int, values: int, rounds: int) -> Clock:
    """Run SecAgg+ as its server workflow does, keys and shares anew in each round; all holders answer."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    clock, rng = Clock(), np.random.default_rng(holders)
    vectors = [rng.uniform(-FLOWER_CLIP, FLOWER_CLIP, values) for _ in range(holders)]
    for _ in range(rounds):
        flower_round(vectors, clock)
    return clock


def flower_round(vectors: list[NDArray[np.float64]], clock: Clock) -> None:
    """Add the vectors up once.

    Raises:
        SystemExit: the mean is not theirs, up to the quantisation.
    """
    from flwr.common import ndarrays_to_parameters

    client, key = flower_client()
    with clock.of("holder", "set-up"):
        states, inbox = flower_set_up(len(vectors))
    ids, masked = list(states), []
    shares: dict[int, list[bytes]] = {node: [] for node in ids}
    with clock.of("holder", "round"):
        for (node, state), vector in zip(states.items(), vectors, strict=True):
            sources, texts = zip(*inbox[node], strict=True)
            question = {key.CIPHERTEXT_LIST: list(texts), key.SOURCE_LIST: list(sources)}
            parameters = ndarrays_to_parameters([vector])
            made = client._collect_masked_vectors(state, question, FLOWER_WEIGHT, parameters)
            masked.append(made[key.MASKED_PARAMETERS])
        for state in states.values():
            made = client._unmask(state, {key.ACTIVE_NODE_ID_LIST: ids, key.DEAD_NODE_ID_LIST: []})
            for owner, share in zip(made[key.NODE_ID_LIST], made[key.SHARE_LIST], strict=True):
                shares[owner].append(share)
    with clock.of("coordinator", "round"):
        mean = flower_unmask(masked, shares)
    if not np.allclose(mean, np.mean(vectors, axis=0), atol=4 * FLOWER_CLIP / FLOWER_LEVELS):
        raise SystemExit("Flower's mean is wrong")


def flower_client() -> tuple[Any, Any]:
    """Return the module of Flower's client mod and the names of its settings."""
    from flwr.common.secure_aggregation.secaggplus_constants import Key

    # Its package has a function of the same name.
    return importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod"), Key


def flower_set_up(holders: int) -> tuple[dict[int, Any], dict[int, list[tuple[int, bytes]]]]:
    """Exchange keys and shares; return each holder's state and, by holder, sender and encrypted shares."""
    client, key = flower_client()
    settings = {
        key.SAMPLE_NUMBER: holders,
        key.SHARE_NUMBER: holders,
        key.THRESHOLD: threshold(holders),
        key.CLIPPING_RANGE: FLOWER_CLIP,
        key.TARGET_RANGE: FLOWER_LEVELS,
        key.MOD_RANGE: FLOWER_MODULUS,
        key.MAX_WEIGHT: float(FLOWER_WEIGHT),
    }
    states = {node: client.SecAggPlusState() for node in range(1, holders + 1)}
    keys: dict[str, tuple[bytes, bytes]] = {}
    inbox: dict[int, list[tuple[int, bytes]]] = {node: [] for node in states}
    for node, state in states.items():
        state.nid = node
        made = client._setup(state, dict(settings))
        keys[str(node)] = (made[key.PUBLIC_KEY_1], made[key.PUBLIC_KEY_2])
    for node, state in states.items():
        made = client._share_keys(state, dict(keys))
        for target, text in zip(made[key.DESTINATION_LIST], made[key.CIPHERTEXT_LIST], strict=True):
            inbox[target].append((node, text))
    return states, inbox


def flower_unmask(masked: list[list[bytes]], shares: dict[int, list[bytes]]) -> NDArray[np.float64]:
    """Add up and unmask as ``SecAggPlusWorkflow`` does when nobody has dropped out; returns the mean."""
    from flwr.common import bytes_to_ndarray
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        factor_extract,
        get_parameters_shape,
        parameters_addition,
        parameters_mod,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.quantization import dequantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    total: Any = None
    for parts in masked:
        vector = [bytes_to_ndarray(part) for part in parts]
        total = vector if total is None else parameters_addition(total, vector)
    total = parameters_mod(total, FLOWER_MODULUS)
    for held in shares.values():
        mask = pseudo_rand_gen(combine_shares(held), FLOWER_MODULUS, get_parameters_shape(total))
        total = parameters_subtraction(total, mask)
    weight, (quantised,) = factor_extract(parameters_mod(total, FLOWER_MODULUS))
    (restored,) = dequantize([quantised], FLOWER_CLIP, FLOWER_LEVELS)
    return (restored - (len(masked) - 1) * FLOWER_CLIP) * (FLOWER_LEVELS / weight)


# The comparison -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Point:
    """Cost at one number of holders, in seconds of processor time.

    Attributes:
        holders: how many.
        set_up: of one holder, once per session of 32 rounds.
        round: of one holder in each round.
        coordinator_set_up: of the coordinator, once per session.
        coordinator_round: of the coordinator in each round.
        flower: of one of Flower's holders in each round, keys and shares included; None: not run.
    """

    holders: int
    set_up: float
    round: float
    coordinator_set_up: float
    coordinator_round: float
    flower: float | None

    @property
    def in_all(self) -> float:
        """A holder's share of one round in a run of whole sessions."""
        return self.round + self.set_up / SESSION_ROUNDS


def point(holders: int) -> Point:
    """Measure one session with a few rounds."""
    clock = assay(holders, CURVE_VALUES, CURVE_ROUNDS)
    peer = flower(holders, CURVE_VALUES, 1) if holders <= MOST_FLOWER else None
    return Point(
        holders=holders,
        set_up=clock.spent["holder", "set-up"] / holders,
        round=clock.spent["holder", "round"] / holders / CURVE_ROUNDS,
        coordinator_set_up=clock.spent["coordinator", "set-up"],
        coordinator_round=clock.spent["coordinator", "round"] / CURVE_ROUNDS,
        flower=None
        if peer is None
        else (peer.spent["holder", "set-up"] + peer.spent["holder", "round"]) / holders,
    )


def line_through(points: list[Point], cost: Callable[[Point], float]) -> dict[str, float]:
    """Fit cost = start + slope * holders by least squares; ``r2`` says how straight the points lie."""
    x = np.array([p.holders for p in points], dtype=np.float64)
    y = np.array([cost(p) for p in points])
    slope, start = np.polyfit(x, y, 1)
    rest = y - (start + slope * x)
    spread = float(((y - y.mean()) ** 2).sum())
    return {"start_s": float(start), "slope_s": float(slope), "r2": 1 - float((rest**2).sum()) / spread}


def one_round(repetitions: int) -> dict[str, Any]:
    """Ten holders add 100,000 values once: all parties together, keys and shares included."""
    holders, values = 10, 100_000
    ours = [assay(holders, values, 1) for _ in range(repetitions)]
    theirs = [flower(holders, values, 1) for _ in range(repetitions)]
    ours_s, theirs_s = (statistics.median(clock.total() for clock in clocks) for clocks in (ours, theirs))
    rounds_s = statistics.median(sum(c.spent[who, "round"] for who in WHO) for c in ours)
    return {
        "holders": holders,
        "values": values,
        "assay_s": ours_s,
        "assay_without_set_up_s": rounds_s,
        "flower_s": theirs_s,
        "times_flower": theirs_s / ours_s,
    }


def whole_run(holders: int) -> dict[str, Any]:
    """Many holders, few values, thirty rounds: set-up included."""
    values, rounds = 500, 30
    clock = assay(holders, values, rounds)
    mine = sum(seconds for (who, _), seconds in clock.spent.items() if who == "holder") / holders
    return {
        "holders": holders,
        "values": values,
        "rounds": rounds,
        "all_parties_s": clock.total(),
        "one_holder_s": mine,
        "coordinator_s": clock.total() - mine * holders,
    }


def tell(words: str) -> None:
    """Say on stderr what is being done."""
    print(words, file=sys.stderr, flush=True)


def measure(*, quick: bool) -> dict[str, Any]:
    """Run everything; ``quick`` leaves out what takes minutes."""
    tell("one round of 10 holders, 100,000 values")
    single = one_round(1 if quick else 3)
    points = []
    for holders in CURVE[:3] if quick else CURVE:
        tell(f"{holders} holders, {CURVE_VALUES} values")
        points.append(point(holders))
    run_holders = 10 if quick else 100
    tell(f"30 rounds of {run_holders} holders, 500 values")
    return {
        "one_round": single,
        "curve": [{**vars(p), "in_all": p.in_all} for p in points],
        "line_round": line_through(points, lambda p: p.round),
        "line_in_all": line_through(points, lambda p: p.in_all),
        "whole_run": whole_run(run_holders),
    }


def printed(found: dict[str, Any]) -> str:
    """Return the tables for people."""
    single, run = found["one_round"], found["whole_run"]
    return "\n".join(
        [
            f"{single['holders']} holders x {single['values']:,} values, one round, all parties together, s",
            f"  Assay, with keys and shares for {SESSION_ROUNDS} rounds{single['assay_s']:>12.3f}",
            f"    without them, as in later rounds{single['assay_without_set_up_s']:>19.3f}",
            f"  Flower's SecAgg+{single['flower_s']:>37.3f}",
            f"  Flower takes {single['times_flower']:.1f} times as long",
            f"{run['holders']} holders x {run['values']} values x {run['rounds']} rounds, with keys, shares",
            f"  all parties {run['all_parties_s']:.1f} s, of it one holder {run['one_holder_s']:.2f} s,"
            f" the coordinator {run['coordinator_s']:.2f} s",
            f"cost against the number of holders, {CURVE_VALUES} values, ms",
            "                    one holder                coordinator      Flower's holder",
            "holders    a session  a round    in all    a session  a round      in all",
            *map(row, found["curve"]),
            "in all: a round with 1/32 of the session's keys and shares",
            f"  a round {fitted(found['line_round'])}",
            f"  in all  {fitted(found['line_in_all'])}",
        ]
    )


def row(found: dict[str, Any]) -> str:
    """Return one line of the table of costs by number of holders."""
    ours = ("set_up", "round", "in_all", "coordinator_set_up", "coordinator_round")
    cells = [f"{1e3 * found[key]:>{width}.2f}" for key, width in zip(ours, (13, 9, 10, 13, 9), strict=True)]
    peer = "not run" if found["flower"] is None else f"{1e3 * found['flower']:.2f}"
    return f"{found['holders']:>7}{''.join(cells)}{peer:>12}"


def fitted(line: dict[str, float]) -> str:
    """Say a fitted line in words."""
    return (
        f"{1e3 * line['start_s']:.2f} ms + {1e6 * line['slope_s']:.0f} microseconds for each holder,"
        f" R² {line['r2']:.4f}"
    )


def chart(found: dict[str, Any]) -> str:
    """Return a page with a holder's cost against the number of holders, drawn and as a table."""
    from assay.models.page import table
    from assay.models.svg import WIDTH, Span, marker, svg
    from assay.simulations.charts import Plot, axes, legend, line, ticks
    from assay.simulations.page import figure, page

    points = found["curve"]
    holders, most = [p["holders"] for p in points], max(p["holders"] for p in points)
    costs = {kind: [1e3 * p[key] for p in points] for kind, key, _ in SERIES}
    top = 1.1 * max(map(max, costs.values()))
    plot = Plot(
        x=Span(low=0, high=most, start=54, stop=WIDTH - 20), y=Span(low=0, high=top, start=276, stop=10)
    )
    drawn = axes(
        plot,
        x_ticks=ticks(0, most),
        y_ticks=ticks(0, top),
        x_words=lambda value: f"{value:g}",
        y_words=lambda value: f"{value:g}",
        x_title="Holders",
        y_title="Processor time, ms",
    )
    for kind, shape in (("federated", "circle"), ("pooled", "square")):
        drawn += line(plot, holders, costs[kind], kind)
        for place in zip(holders, costs[kind], strict=True):
            drawn += marker(shape, *plot.at(*place), f"mark {kind}", 3.5)
    drawn += legend(*plot.at(0.05 * most, 0.95 * top), [(f"line {kind}", words) for kind, _, words in SERIES])
    caption = f"A round: {fitted(found['line_round'])}."
    picture = svg("curve", title="Cost against holders", desc=caption, height=316, parts=[drawn])
    cells = [(str(p["holders"]), *(f"{1e3 * p[key]:.2f}" for _, key, _ in SERIES)) for p in points]
    numbers = table("Of one holder, ms", ("Holders", *(words for _, _, words in SERIES)), cells)
    title = "Secure aggregation: what a round costs one holder"
    section = ("cost", f"{CURVE_VALUES} values a round", figure(picture, caption, numbers))
    return page(title=title, header=f"<h1>{title}</h1>", sections=[section])


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="at most 25 holders")
    parser.add_argument("--chart", type=Path, help="write the curve to this HTML file")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(quick=options.quick)
    if options.chart:
        options.chart.write_text(chart(found), encoding="utf-8")
    print(json.dumps(found) if options.json else printed(found))


if __name__ == "__main__":
    main()
