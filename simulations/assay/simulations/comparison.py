"""One study three ways on the same records: each holder alone, federated, and pooled in one place.

All three at the same epsilon and through the same code, so that only who works together differs. A holder
that trains alone, or has everything, has nobody to add numbers up with and adds its full noise itself: trust
"local" with one holder, which is differential privacy as one trusted curator would give it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from assay.client.records import Records
from assay.models.encoding import Grid
from assay.models.explain import explain
from assay.models.person_page import short_label
from assay.models.scorecard import Scorecard, Scores
from assay.models.study import parse_study
from assay.privacy.errors import BadInput
from assay.simulations.engine import Federated, challenge, federate, with_model, with_trust
from assay.simulations.findings import Comparison, LocalSpread, Metrics, PersonLine
from assay.simulations.unprotected import train_unprotected

__all__ = [
    "Baselines",
    "Evaluation",
    "evaluate",
    "network_metrics",
    "people_lines",
    "records_at",
    "scorecard_of",
    "train_baselines",
]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A scorecard on held-out records.

    Attributes:
        card: the scorecard.
        scores: of the held-out records, in order.
        metrics: against their outcomes.
    """

    card: Scorecard
    scores: Scores = field(repr=False)
    metrics: Metrics


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """What the federated model is compared with.

    Attributes:
        local: each holder's own model, by name; of those that were trained alone.
        pooled: the model of one holder that has everything.
        unprotected: the same model without privacy.
        neural: metrics of a network trained together at the same epsilon; None where the study asks for none.
    """

    local: dict[str, Evaluation]
    pooled: Evaluation
    unprotected: Evaluation
    neural: Metrics | None = None

    def compared_with(self, federated: Evaluation) -> Comparison:
        """Return the three side by side."""
        aurocs = [own.metrics.auroc for own in self.local.values()]
        spread = None
        if aurocs:
            spread = LocalSpread(mean=float(np.mean(aurocs)), low=min(aurocs), high=max(aurocs))
        return Comparison(
            local=spread,
            federated=federated.metrics,
            pooled=self.pooled.metrics,
            unprotected=self.unprotected.metrics,
            neural=self.neural,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the baselines as the JSON of ``assay simulate``.

        Local-only is the mean over the holders that were trained alone, None where none was.
        """
        aurocs = {name: own.metrics.auroc for name, own in self.local.items()}
        return {
            "local_only_auroc": float(np.mean(list(aurocs.values()))) if aurocs else None,
            "local_only_best_auroc": max(aurocs.values(), default=None),
            "local_only_holders": len(aurocs),
            "local_only_auroc_by_holder": aurocs,
            "pooled_auroc": self.pooled.metrics.auroc,
            "pooled": asdict(self.pooled.metrics),
            "non_private_auroc": self.unprotected.metrics.auroc,
            "non_private": asdict(self.unprotected.metrics),
            **({} if self.neural is None else {"neural_auroc": self.neural.auroc}),
        }


def records_at(records: Records, rows: NDArray[np.int64]) -> Records:
    """Return the chosen rows as records of their own, persons numbered anew.

    Raises:
        BadInput: no row is chosen.
    """
    persons = None
    if records.persons is not None:
        persons = np.unique(records.persons[rows], return_inverse=True)[1].astype(np.int64)
    return Records(
        columns={name: values[rows] for name, values in records.columns.items()},
        labels=records.labels[rows],
        persons=persons,
        groups={name: codes[rows] for name, codes in records.groups.items()},
        patterns=None if records.patterns is None else records.patterns[rows],
        absent=records.absent,
        ignored=records.ignored,
    )


def evaluate(card: Scorecard, test: Records) -> Evaluation:
    """Score held-out records.

    Raises:
        BadInput: the held-out records have only one outcome.
    """
    scores = card.score(card.grid.encode(test.columns, test.patterns))
    return Evaluation(card=card, scores=scores, metrics=Metrics.of(test.labels, scores.probability))


def scorecard_of(done: Federated) -> Scorecard:
    """Return the scorecard of a simulated run."""
    return done.trained.card


def train_baselines(
    text: str,
    holders: Mapping[str, Records],
    test: Records,
    *,
    step: Callable[[str], None] = lambda _: None,
) -> Baselines:
    """Train every holder alone and all of them pooled, at the study's epsilon.

    Args:
        text: the study file.
        holders: training records by holder.
        test: held-out records.
        step: called with words before each training.
    """
    neural = None
    if parse_study(text).training.model == "neural":
        step("neural network, together")
        neural = network_metrics(text, holders, test)
    text, local = with_model(with_trust(text, "local"), "additive"), {}
    for name, records in holders.items():
        step(f"local-only model of {name}")
        alone = federate(text, {name: records})
        local[name] = evaluate(scorecard_of(alone), test)
    step("pooled model")
    study = parse_study(text)
    everything = pool(list(holders.values()), Grid.of(study))
    together = federate(text, {"pooled": everything})
    step("pooled model without privacy")
    return Baselines(
        local=local,
        pooled=evaluate(scorecard_of(together), test),
        unprotected=evaluate(train_unprotected(study, everything), test),
        neural=neural,
    )


def network_metrics(text: str, holders: Mapping[str, Records], test: Records) -> Metrics:
    """Train the study's network over all holders, at the study's epsilon and trust, and measure it."""
    from assay.models.neural import NeuralLayout

    grid = Grid.of(parse_study(text))
    theta = challenge(text, holders)
    log_odds = NeuralLayout(grid=grid).log_odds(theta, grid.encode(test.columns, test.patterns))
    return Metrics.of(test.labels, expit(log_odds))


def pool(parts: list[Records], grid: Grid) -> Records:
    """Put the records of several holders in one place; no person is taken to be at two of them.

    A column that a holder lacks is missing in that holder's rows, a component that it lacks absent.

    Args:
        parts: the holders' records.
        grid: says which columns make up a component.
    """
    columns = _joined([part.columns for part in parts], [part.rows for part in parts])
    groups = [set(part.groups) for part in parts]
    persons = None
    if all(part.persons is not None for part in parts):
        offsets = np.cumsum([0, *(part.persons_count for part in parts[:-1])])
        codes = [part.persons + offset for part, offset in zip(parts, offsets, strict=True)]
        persons = np.concatenate(codes)
    patterns = [np.full(part.rows, grid.pattern_of(part.columns), dtype=np.int32) for part in parts]
    return Records(
        columns=columns,
        labels=np.concatenate([part.labels for part in parts]),
        persons=persons,
        groups={
            name: np.concatenate([part.groups[name] for part in parts])
            for name in sorted(set.intersection(*groups))
        },
        patterns=np.concatenate(patterns),
    )


def _joined(parts: list[Mapping[str, NDArray[Any]]], rows: list[int]) -> dict[str, NDArray[Any]]:
    names = dict.fromkeys(name for part in parts for name in part)
    dtypes = {name: next(part[name].dtype for part in parts if name in part) for name in names}
    return {
        name: np.concatenate(
            [
                part.get(name, np.full(count, np.nan if dtypes[name].kind == "f" else None, dtypes[name]))
                for part, count in zip(parts, rows, strict=True)
            ]
        )
        for name in names
    }


def people_lines(evaluation: Evaluation, test: Records) -> tuple[PersonLine, ...]:
    """Explain three held-out records: one of the lowest, one of the middle, one of the highest scores."""
    order = np.argsort(evaluation.scores.score, kind="stable")
    if not len(order):
        raise BadInput("held-out records", allowed="at least one")
    chosen = [order[int(share * (len(order) - 1))] for share in (0.02, 0.5, 0.98)]
    return tuple(_person(evaluation, test, int(row)) for row in dict.fromkeys(chosen))


def _person(evaluation: Evaluation, test: Records, row: int) -> PersonLine:
    record = {name: _cell(values[row]) for name, values in test.columns.items()}
    found = explain(evaluation.card, record)
    labels = {feature["name"]: feature["label"] for feature in found["features"]}
    return PersonLine(
        title=f"Held-out record {row + 1}",
        score=found["score"],
        band=found["band"],
        probability=found["probability"],
        points=tuple((short_label(f, labels), f["value"], f["points"]) for f in found["features"]),
        base_points=found["base_points"],
        capped=found["capped"],
        reasons=tuple(reason["words"] for reason in found["reasons"]),
    )


def _cell(value: object) -> object:
    return None if value is None or value != value else value
