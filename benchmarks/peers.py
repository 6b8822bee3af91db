"""The models that `models.py` compares Assay with. All of them have every record in one place.

Each is a function of the study, training records, held-out records and epsilon, and returns the probability
of bad of the held-out. A peer may have several settings; the caller reports the best of them by its result on
held-out records, which flatters the peer: nobody could choose so without spending privacy.

dp-ebm        interpret's DPExplainableBoostingClassifier (Nori et al., "Accuracy, Interpretability, and
              Differential Privacy via Explainable Boosting", ICML 2021) as it comes: only epsilon and delta
              are set. It then takes ranges and types from the records, which its epsilon does not count.
              It refuses missing values, which become the middle of the public range.
dp-ebm-tuned  the same with public ranges, types and transforms from the study, and a grid of its options
dp-logistic   logistic regression by full-batch gradient descent through Opacus' PrivacyEngine
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from assay.client.records import Records
from assay.models.schema import Feature, Study, transformed

__all__ = ["DELTA", "PEERS", "Peer", "lacking"]

DELTA = 1e-6
# Where the import name is not the name to install.
_PACKAGES = {"interpret": "interpret-core", "sklearn": "scikit-learn"}

Chances = NDArray[np.float64]
Fit = Callable[[Study, Records, Records, float], Chances]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One model.

    Attributes:
        needs: what it imports beyond Assay's own dependencies.
        private: whether epsilon bounds what it gives away.
        settings: functions to fit it, by setting in words.
    """

    needs: tuple[str, ...]
    private: bool
    settings: Mapping[str, Fit]


def lacking(names: list[str]) -> list[str]:
    """Return the packages to install before these peers can run; Assay's own models need none."""
    needed = {module for name in names if name in PEERS for module in PEERS[name].needs}
    return sorted(
        _PACKAGES.get(module, module) for module in needed if importlib.util.find_spec(module) is None
    )


def _frame(study: Study, records: Records) -> Any:
    """Return the columns as they are, as a data frame; a missing level is a level of its own."""
    import pandas

    columns = dict(records.columns)
    for feature in study.features:
        if not feature.ordered:
            values = columns[feature.column]
            columns[feature.column] = np.where(np.equal(values, None), "missing", values).astype(object)
    return pandas.DataFrame({feature.column: columns[feature.column] for feature in study.features})


def _filled(study: Study, records: Records, *, public: bool) -> Any:
    """Return the same without missing numbers; with ``public`` clamped to their range and transformed."""
    frame = _frame(study, records)
    for feature in study.features:
        if feature.ordered:
            values, ends = frame[feature.column].to_numpy(), np.array(feature.domain, dtype=np.float64)
            if public:
                ends = _range(feature)
                values = transformed(np.clip(values, *feature.domain), feature.transform)
            frame[feature.column] = np.where(np.isnan(values), ends.mean(), values)
    return frame


def _range(feature: Feature) -> NDArray[np.float64]:
    return transformed(np.array(feature.domain, dtype=np.float64), feature.transform)


def _boosted(study: Study, train: Records, test: Records, epsilon: float, **options: Any) -> Chances:
    """Fit DP-EBM; with options, on the study's public ranges, types and transforms."""
    from interpret.privacy import DPExplainableBoostingClassifier

    if options:
        ordered = [feature for feature in study.features if feature.ordered]
        options["privacy_bounds"] = {feature.column: tuple(_range(feature)) for feature in ordered}
        options["feature_types"] = ["continuous" if f.ordered else "nominal" for f in study.features]
    public = bool(options)
    model = DPExplainableBoostingClassifier(epsilon=epsilon, delta=DELTA, n_jobs=1, **options)
    model.fit(_filled(study, train, public=public), train.labels.astype(int))
    return np.asarray(model.predict_proba(_filled(study, test, public=public))[:, 1], dtype=np.float64)


def _boosted_settings() -> dict[str, Fit]:
    grid = itertools.product(((100, 0.2), (300, 0.05), (300, 0.1)), (16, 32), (3, 5))
    options = [
        {"max_rounds": rounds, "learning_rate": rate, "max_bins": bins, "max_leaves": leaves}
        for (rounds, rate), bins, leaves in grid
    ]
    return {_words(one): functools.partial(_boosted, **one) for one in options}


def _words(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in options.items())


def _inputs(study: Study, records: Records) -> NDArray[np.float64]:
    """Return [N, D]: numbers from -1 to 1 over their public range, and 0 or 1 for empty cells and levels."""
    columns = []
    for feature in study.features:
        values = records.columns[feature.column]
        if feature.domain is None:
            columns += [(values == level).astype(np.float64) for level in feature.levels]
            continue
        low, high = _range(feature)
        place = (
            2 * (transformed(np.clip(values, *feature.domain), feature.transform) - low) / (high - low) - 1
        )
        empty = np.isnan(place)
        columns += [np.where(empty, 0.0, place), empty.astype(np.float64)]
    return np.stack(columns, axis=1)


# Chosen on other splits of the same Taiwan records: 30 to 300 steps, rates and norms of .5 to 4 were tried.
_STEPS, _RATE, _MOMENTUM, _NORM = 100, 0.5, 0.9, 3.0


def _private_logistic(study: Study, train: Records, test: Records, epsilon: float) -> Chances:
    """Fit by gradient descent over all rows; the parameters of the later half of the steps are averaged."""
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(1)
    x = torch.from_numpy(_inputs(study, train)).float()
    y = torch.from_numpy(train.labels).float()
    model = torch.nn.Linear(x.shape[1], 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    # One batch of everything: the loader only tells the engine that the sampling rate is 1.
    module, optimizer, _ = PrivacyEngine(accountant="prv").make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=_RATE, momentum=_MOMENTUM),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=len(y)),
        target_epsilon=epsilon,
        target_delta=DELTA,
        epochs=_STEPS,
        max_grad_norm=_NORM,
    )
    loss, kept = torch.nn.BCEWithLogitsLoss(), []
    for step in range(_STEPS):
        optimizer.zero_grad()
        loss(module(x).squeeze(1), y).backward()
        optimizer.step()
        if step >= _STEPS // 2:
            kept.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))
    weights = torch.stack(kept).mean(dim=0).double().numpy()
    return 1 / (1 + np.exp(-(_inputs(study, test) @ weights[:-1] + weights[-1])))


def _logistic(study: Study, train: Records, test: Records, epsilon: float) -> Chances:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(_inputs(study, train), train.labels)
    return np.asarray(model.predict_proba(_inputs(study, test))[:, 1], dtype=np.float64)


def _explainable(study: Study, train: Records, test: Records, epsilon: float, **options: Any) -> Chances:
    from interpret.glassbox import ExplainableBoostingClassifier

    model = ExplainableBoostingClassifier(n_jobs=1, **options)
    model.fit(_frame(study, train), train.labels.astype(int))
    return np.asarray(model.predict_proba(_frame(study, test))[:, 1], dtype=np.float64)


def _trees(study: Study, train: Records, test: Records, epsilon: float, **options: Any) -> Chances:
    import pandas
    from lightgbm import LGBMClassifier

    def typed(records: Records) -> Any:
        frame = _frame(study, records)
        for feature in study.features:
            if not feature.ordered:
                levels = [*feature.levels, "missing"]
                frame[feature.column] = pandas.Categorical(frame[feature.column], categories=levels)
        return frame

    model = LGBMClassifier(n_jobs=1, verbose=-1, **options)
    model.fit(typed(train), train.labels)
    return np.asarray(model.predict_proba(typed(test))[:, 1], dtype=np.float64)


_SLOW_TREES = [
    {"n_estimators": 200, "learning_rate": 0.03, "num_leaves": 15, "colsample_bytree": 0.5, "reg_lambda": 5},
    {"n_estimators": 400, "learning_rate": 0.02, "num_leaves": 8, "colsample_bytree": 0.3, "reg_lambda": 5},
]

PEERS: dict[str, Peer] = {
    "dp-ebm": Peer(needs=("interpret", "pandas"), private=True, settings={"as shipped": _boosted}),
    "dp-ebm-tuned": Peer(needs=("interpret", "pandas"), private=True, settings=_boosted_settings()),
    "dp-logistic": Peer(needs=(), private=True, settings={f"{_STEPS} steps": _private_logistic}),
    "lightgbm": Peer(needs=("lightgbm", "pandas", "sklearn"), private=False, settings={"as shipped": _trees}),
    "lightgbm-tuned": Peer(
        needs=("lightgbm", "pandas", "sklearn"),
        private=False,
        settings={_words(one): functools.partial(_trees, **one) for one in _SLOW_TREES},
    ),
    "ebm": Peer(needs=("interpret", "pandas"), private=False, settings={"as shipped": _explainable}),
    "ebm-additive": Peer(
        needs=("interpret", "pandas"),
        private=False,
        settings={"interactions 0": functools.partial(_explainable, interactions=0)},
    ),
    "logistic": Peer(needs=("sklearn",), private=False, settings={"as shipped": _logistic}),
}
