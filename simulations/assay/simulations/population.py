"""A synthetic population whose true risk is known: heavy tails, gaps, regions that differ, drift, bad labels.

How people come about is written in ``population.toml``. Randomness here lays out a simulation, never noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri

from assay.models.schema import COMPONENTS
from assay.privacy.errors import BadInput
from assay.simulations.population_params import Parameters
from assay.simulations.population_risk import log_odds
from assay.simulations.population_trait import OUTCOMES, Trait

__all__ = ["BLOCK", "CHUNK", "MAX_PEOPLE", "Chunk", "generate", "population_schema"]

MAX_PEOPLE = 100_000_000
BLOCK = 4096
"""People drawn from one random stream: person k is the same however many others are drawn."""
CHUNK = 16 * BLOCK
_MOST = 700.0  # exponents beyond it overflow float64
_MOST_RATE = 1e6  # of a count

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some people, in order.

    Attributes:
        table: what a file holds of them, see :func:`population_schema`.
        true_risk: for ``"credit"`` and ``"fraud"`` the true probability, float64 [N]; in no file.
        mislabelled: for each the rows whose label is not what happened, bool [N]; in no file.
    """

    table: pa.Table
    true_risk: dict[str, NDArray[np.float64]]
    mislabelled: dict[str, NDArray[np.bool_]]


def generate(params: Parameters, *, people: int, seed: int = 0, chunk: int = CHUNK) -> Iterator[Chunk]:
    """Make people, a chunk at a time.

    A value of a feature comes from its hidden value x, a standard normal before region and groups, through
    the feature's law, with h(x) = x exp(tail x²/2) (Tukey's h distribution: as heavy a tail as is asked for):

    | law       | value                                                                |
    |-----------|----------------------------------------------------------------------|
    | lognormal | median exp(spread h(x))                                              |
    | normal    | median + spread h(x)                                                 |
    | share     | logistic(logit(median) + spread x)                                   |
    | count     | Poisson with rate median exp(spread h(x))                            |
    | shares    | one value of the domain, or level, after another, as x grows         |

    Args:
        params: see :func:`.population_read.read_parameters`.
        people: 1..100,000,000.
        seed: 0..2^63-1; with the parameters it decides everything.
        chunk: people per chunk, rounded up to whole blocks of 4096; decides nothing about them.

    Raises:
        BadInput: a number is out of its range.
    """
    for setting, value, low, high in (
        ("people", people, 1, MAX_PEOPLE),
        ("seed", seed, 0, 2**63 - 1),
        ("chunk", chunk, 1, MAX_PEOPLE),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise BadInput(setting, value=value, allowed=f"a whole number from {low} to {high:,}")
    return _chunks(params, people, seed, -(-chunk // BLOCK))


def population_schema(params: Parameters) -> pa.Schema:
    """Return the columns of a file.

    ``person_id`` (from 1), ``month`` (from 0), ``region``, the protected groups, ``holders`` (how many
    institutions know the person) and ``known_to`` (their numbers, e.g. ``"1 4"``), the features, and the
    outcomes ``default`` and ``fraud`` (0 or 1, as recorded).
    """
    fields = [("person_id", pa.int64()), ("month", pa.int32()), ("region", pa.string())]
    fields += [(name, pa.string()) for name in params.groups]
    fields += [("holders", pa.int32()), ("known_to", pa.string())]
    for name, trait in params.features.items():
        whole = trait.kind == "integer" or (trait.law != "shares" and trait.decimals <= 0)
        fields.append((name, pa.string() if trait.levels else pa.int64() if whole else pa.float64()))
    fields += [(column, pa.int32()) for column in OUTCOMES.values()]
    return pa.schema(fields)


def _chunks(params: Parameters, people: int, seed: int, blocks: int) -> Iterator[Chunk]:
    """Draw whole blocks, so that one person's numbers do not depend on how many others are drawn."""
    for first in range(0, people, blocks * BLOCK):
        size = min(blocks * BLOCK, people - first)
        numbers = range(first // BLOCK, -(-(first + size) // BLOCK))
        drawn = [_Block(params, seed, number).columns for number in numbers]
        columns = {name: np.concatenate([one[name] for one in drawn])[:size] for name in drawn[0]}
        yield Chunk(
            table=_table(params, columns, first),
            true_risk={outcome: columns[f"{outcome} risk"] for outcome in OUTCOMES},
            mislabelled={outcome: columns[f"{outcome} wrong"] for outcome in OUTCOMES},
        )


class _Block:
    """4096 people from one random stream; ``columns`` holds codes where a file holds words."""

    def __init__(self, params: Parameters, seed: int, number: int) -> None:
        self.params = params
        self.rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
        self.columns: Columns = {"month": self.rng.integers(0, params.people.months, BLOCK)}
        regions = params.regions.values()
        self.columns["region"] = self._pick([region.share for region in regions])
        for name, group in params.groups.items():
            self.columns[name] = self._pick(group.shares)
        self._draw_holders()
        self.factors = self._draw_factors()
        for name, trait in params.features.items():
            self.columns[name] = self._draw(name, trait)
        for outcome in OUTCOMES:
            self._draw_outcome(outcome)

    def _pick(self, shares: Any) -> NDArray[np.int64]:
        """Draw one of several things with relative shares."""
        ends = np.cumsum(shares)
        return np.searchsorted(ends[:-1] / ends[-1], self.rng.random(BLOCK), side="right")

    def _draw_holders(self) -> None:
        """Draw how many institutions know a person, and which, as a bit mask.

        The k first by the Gumbel trick are a draw without repeats, with weights 1/number.
        """
        own = self.params.people
        count = self._pick(own.known_to) + 1
        weight = -np.log(np.arange(1, own.holders + 1))
        order = np.argsort(-(weight + self.rng.gumbel(size=(BLOCK, own.holders))), axis=1)
        chosen = np.arange(own.holders) < count[:, None]
        self.columns["holders"] = count
        self.columns["known_to"] = np.where(chosen, 1 << order, 0).sum(axis=1)

    def _draw_factors(self) -> dict[str, NDArray[np.float64]]:
        """Return the hidden factor of each component: normal, one common part, moved by region and groups."""
        shared = np.sqrt(self.params.people.correlation) * self.rng.standard_normal(BLOCK)
        alone = np.sqrt(1.0 - self.params.people.correlation)
        factors = {}
        for component in COMPONENTS:
            factor = shared + alone * self.rng.standard_normal(BLOCK)
            moves = [region.shift.get(component, 0.0) for region in self.params.regions.values()]
            factor += np.array(moves)[self.columns["region"]]
            for name, group in self.params.groups.items():
                if component in group.shift:
                    factor += np.array(group.shift[component])[self.columns[name]]
            factors[component] = factor
        return factors

    def _draw(self, name: str, trait: Trait) -> NDArray[Any]:
        """Return one column: float64 with NaN, or codes with -1, where the cell is empty."""
        factor = self.factors[trait.component]
        hidden = trait.loading * factor + np.sqrt(1.0 - trait.loading**2) * self.rng.standard_normal(BLOCK)
        moves = [region.moves.get(name, 0.0) for region in self.params.regions.values()]
        hidden += np.array(moves)[self.columns["region"]] + trait.drift * (self.columns["month"] / 12.0)
        values = self._by_law(trait, hidden)
        if trait.needs is not None:
            values[self.columns[trait.needs] == 0] = 0
        if trait.missing > 0:
            chance = expit(logit(trait.missing) + trait.missing_slope * factor)
            values[self.rng.random(BLOCK) < chance] = -1 if trait.levels else np.nan
        return values

    def _by_law(self, trait: Trait, hidden: NDArray[np.float64]) -> NDArray[Any]:
        if trait.law == "shares":
            ends = np.cumsum(trait.shares)
            code = np.searchsorted(ndtri(ends[:-1] / ends[-1]), hidden)
            return code if trait.domain is None else code + float(trait.domain[0])
        median, spread = trait.median or 0.0, trait.spread or 0.0
        bent = hidden * np.exp(np.minimum(trait.tail * hidden**2 / 2, _MOST))
        if trait.law == "normal":
            values = median + spread * bent
        elif trait.law == "share":
            values = expit(logit(median) + spread * hidden)
        else:
            values = median * np.exp(np.clip(spread * bent, -_MOST, _MOST))
            if trait.law == "count":
                values = self.rng.poisson(np.minimum(values, _MOST_RATE)).astype(np.float64)
        return np.clip(np.round(values, trait.decimals), *trait.bounds)

    def _draw_outcome(self, outcome: str) -> None:
        """Draw what happens by the true risk, and what is recorded of it."""
        own = self.params.outcomes[outcome]
        risk = expit(log_odds(self.params, outcome, self.columns))
        bad = self.rng.random(BLOCK) < risk
        wrong = self.rng.random(BLOCK) < np.where(bad, own.bad_as_good, own.good_as_bad)
        self.columns[f"{outcome} risk"] = risk
        self.columns[f"{outcome} wrong"] = wrong
        self.columns[OUTCOMES[outcome]] = bad ^ wrong


def _table(params: Parameters, columns: Columns, first: int) -> pa.Table:
    """Return the columns of :func:`population_schema`."""
    schema = population_schema(params)
    words = {"region": tuple(params.regions), "known_to": _holder_words(params.people.holders)}
    words |= {name: group.levels for name, group in params.groups.items()}
    words |= {name: trait.levels for name, trait in params.features.items() if trait.levels}
    arrays = []
    for field in schema:
        if field.name == "person_id":
            arrays.append(pa.array(np.arange(first + 1, first + 1 + len(columns["month"]))))
        elif field.name in words:
            code = columns[field.name]
            arrays.append(pa.array(words[field.name], pa.string()).take(pa.array(code, mask=code < 0)))
        else:
            values = columns[field.name]
            arrays.append(pa.array(values, mask=np.isnan(values)).cast(field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _holder_words(holders: int) -> list[str]:
    """Return the numbers of the institutions for each bit mask: ``"1 3"`` for 5."""
    return [
        " ".join(str(number + 1) for number in range(holders) if mask >> number & 1)
        for mask in range(1 << holders)
    ]
