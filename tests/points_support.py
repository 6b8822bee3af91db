"""A federation whose holders have different components of the same people, on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from assay.client import enrol
from assay.client.config import CONFIG_FILE
from assay.client.points import state_points
from assay.models.ask import make_request
from assay.models.assemble import assemble
from assay.models.bundle import Bundle, read_bundle, write_bundle
from assay.models.encoding import Grid
from assay.models.scorecard import Scorecard
from assay.models.study import parse_study
from assay.privacy.enrolment import Request
from assay.server.federation import Federation

TEXT = """\
[study]
name = "vertical"
purpose = "consumer_credit"
contexts = ["card", "loan"]

[outcome]
column = "bad"
meaning = "missed a payment"

[[features]]
name = "amount"
column = "amount"
component = "spending"
kind = "numeric"
domain = [0, 1000]
label = "Amount"

[[features]]
name = "late"
column = "late"
component = "payment_history"
kind = "integer"
domain = [0, 6]
label = "Late payments"

[[features]]
name = "region"
column = "region"
component = "identity"
kind = "categorical"
levels = ["north", "south"]
label = "Region"

[[features]]
name = "basket"
column = "basket"
component = "spending"
kind = "numeric"
domain = [-100, 100]
transform = "signed_log"
label = "Basket"

[[features]]
name = "returns"
column = "returns"
component = "compliance"
platform = "shop"
kind = "integer"
domain = [0, 3]
label = "Returns"

[[interactions]]
features = ["amount", "basket"]
description = "What somebody spends, beside what is sent back."

[privacy]
epsilon = 1.0
"""
STUDY = parse_study(TEXT)
GRID = Grid.of(STUDY)
NOW = 1_800_000_000.0
DAY = 86_400
WHOLE = ("amount", "basket", "late", "region", "returns")
PARTS = {
    "bank": ("late",),
    "shop": ("amount", "basket", "returns"),
    "registry": ("region",),
}
PEOPLE = 30


def clock() -> float:
    return NOW


def people(seed: int = 5) -> dict[str, list[str]]:
    """Return the cells of all columns, person by person; some are empty."""
    rng = np.random.default_rng(seed)
    cells = {
        "person": [f"p{i}" for i in range(PEOPLE)],
        "amount": [f"{x:.2f}" for x in rng.uniform(-50, 1100, PEOPLE)],
        "basket": [f"{x:.3f}" for x in rng.normal(0, 60, PEOPLE)],
        "late": [str(x) for x in rng.integers(0, 7, PEOPLE)],
        "region": list(rng.choice(["north", "south", "sea"], PEOPLE)),
        "returns": [str(x) for x in rng.integers(0, 4, PEOPLE)],
    }
    for column in WHOLE:
        for row in np.flatnonzero(rng.random(PEOPLE) < 0.15):
            cells[column][row] = ""
    return cells


def write_csv(path: Path, columns: tuple[str, ...], cells: dict[str, list[str]] | None = None) -> None:
    """Write the person column and these columns."""
    cells = people() if cells is None else cells
    names = ("person", *columns)
    rows = zip(*(cells[name] for name in names), strict=True)
    path.write_text("\n".join([",".join(names), *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")


def card(seed: int = 1, scale: float = 0.5) -> Scorecard:
    """Return a scorecard of random numbers, with both baselines of reasons."""
    rng = np.random.default_rng(seed)
    theta, counts = rng.normal(0, scale, GRID.width), rng.uniform(1, 500, GRID.width)
    made = Scorecard.of(STUDY, GRID, theta, counts)
    return Scorecard(
        study=STUDY,
        grid=GRID,
        points=made.points,
        bases=made.bases,
        means=made.means,
        near=made.means + rng.normal(0, 5, len(GRID.terms)),
    )


class Holders:
    """A coordinator that was never started, its holders, and a bundle that it signed."""

    def __init__(self, root: Path, parts: dict[str, tuple[str, ...]] | None = None) -> None:
        self.root = root
        self.parts = PARTS if parts is None else parts
        with Federation.init(root / "coordinator", "Points", "localhost", 9092, clock=clock) as federation:
            self.identity = federation.identity
            for name, columns in self.parts.items():
                enrol.init(root / name, name)
                join = federation.admit(Request.read(root / name / "REQUEST.json"))
                (root / "JOIN.toml").write_bytes(join.to_bytes())
                enrol.join(root / name, root / "JOIN.toml", clock=clock)
                self.configure(name)
                write_csv(root / name / "records.csv", columns)
        self.bundle = self.write("model.bundle")

    def configure(self, name: str, person: str = 'person_column = "person"', **policy: str) -> None:
        """Say where the records lie; policy keys are TOML."""
        path = self.root / name / CONFIG_FILE
        enrolled = enrol.load_keys(self.root / name).name
        from assay.client.config import template

        text = template(enrolled).replace(
            "[policy]", f'[data]\nkind = "csv"\npath = "records.csv"\n{person}\n\n[policy]', 1
        )
        for key, value in policy.items():
            lines = [f"{key} = {value}" if line.startswith(f"{key} =") else line for line in text.split("\n")]
            text = "\n".join(lines)
        path.write_text(text, encoding="utf-8")

    def write(self, name: str, **changed) -> Path:
        """Write a bundle signed by the coordinator."""
        made = card()
        arguments = {
            "study": STUDY,
            "theta": made.theta,
            "scorecard": made,
            "label": {},
            "identity": self.identity,
            "created": NOW - DAY,
            "expires": NOW + 300 * DAY,
        }
        write_bundle(self.root / name, **(arguments | changed))
        return self.root / name

    def open(self) -> Bundle:
        return read_bundle(self.bundle)

    def ask(self, folder: str = "asked", bundle: Path | None = None, **options) -> Path:
        """Make a request and return its directory."""
        arguments = {"purpose": "consumer_credit", "context": "card", "clock": clock} | options
        make_request(read_bundle(bundle or self.bundle), self.root / folder, **arguments)
        return self.root / folder

    def state(self, name: str, asked: Path, person: str = "p3", **options) -> Path:
        """Let a holder answer a request and return its file."""
        output = options.pop("output", self.root / f"{asked.name}-{name}-{person}.points")
        state_points(
            self.root / name,
            options.pop("bundle", self.bundle),
            options.pop("request", asked / "points-request.json"),
            person=person,
            output=output,
            **({"clock": clock} | options),
        )
        return output

    def put_together(self, asked: Path, *files: Path, **options) -> dict:
        opened = options.pop("opened", None) or self.open()
        arguments = {"purpose": "consumer_credit", "clock": clock} | options
        return assemble(opened, files, directory=asked, **arguments)
