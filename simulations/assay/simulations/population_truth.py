"""The parameters that a synthetic population was made with, kept beside it, so that its true risk is known.

The risk of single people stands in no file: it is computed again from the columns when a simulation wants to
say how good a model could be at most. It never becomes a feature.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.models.tabular import CsvReader, ParquetReader
from assay.simulations.population_params import Parameters
from assay.simulations.population_read import read_parameters
from assay.simulations.population_risk import true_risk
from assay.simulations.population_study import HEADER
from assay.simulations.population_trait import OUTCOMES

__all__ = ["parameters_path", "parameters_text", "risk_of"]


def parameters_path(data: Path) -> Path:
    """Return where a population's parameters lie: ``people-parameters.toml`` beside ``people.parquet``."""
    stem = data.name.removesuffix(".gz").removesuffix(data.suffix if data.suffix != ".gz" else ".csv")
    return data.with_name(f"{stem}-parameters.toml")


def parameters_text(params: Parameters) -> str:
    """Return all parameters as a file that :func:`.population_read.read_parameters` reads back unchanged."""
    lines = [f"{HEADER} All parameters of the people in the file beside it; made up and public."]
    lines += _tables("", _plain(params))
    return "\n".join(lines) + "\n"


def risk_of(data: Path, outcome_column: str) -> NDArray[np.float64] | None:
    """Return the true risk of every row of a file that ``assay population`` wrote, in its order.

    Args:
        data: the file of people; its parameters are looked for beside it.
        outcome_column: ``"default"`` or ``"fraud"``.

    Returns:
        float64 [N] in (0, 1): the risk before labels are mistaken. None where there are no parameters beside
        the file, or the outcome is another one.

    Raises:
        BadInput: the parameters are not what the command writes, or not those of this file's columns.
    """
    outcome = {column: name for name, column in OUTCOMES.items()}.get(outcome_column)
    path = parameters_path(data)
    if outcome is None or not path.is_file():
        return None
    params = read_parameters(path)
    reader = ParquetReader(data) if data.suffix == ".parquet" else CsvReader(data)
    try:
        return true_risk(params, reader.fetch((*params.features, "region", "month")))[outcome]
    finally:
        reader.close()


def _plain(value: object) -> Any:
    """Return parameters as tables, numbers, texts and lists; what is None is left out, as in a file."""
    if dataclasses.is_dataclass(value):
        own = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        return {key: _plain(item) for key, item in own.items() if item is not None and key != "name"}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tables(path: str, table: Mapping[str, Any]) -> Iterator[str]:
    """Yield TOML: numbers, texts and lists of them are written as in JSON, keys always quoted."""
    if path:
        yield ""
        yield f"[{path}]"
    for key, value in table.items():
        if not isinstance(value, dict):
            yield f"{json.dumps(key)} = {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _tables(f"{path}.{json.dumps(key)}" if path else json.dumps(key), value)
