"""Real processes, real commands: three holders train on different components, then state points."""

from __future__ import annotations

import csv
import gzip
import json
import re

import pytest
from federation_support import Federation, assay, assay_json

from assay.simulations.examples import example

TAIWAN = example("taiwan")
PEOPLE = 3000
# Which components each holder has.
HOLDERS = {
    "bank-a": ("payment_history",),
    "bank-b": ("spending", "third_party"),
    "bank-c": ("identity",),
}


def study_text() -> str:
    """Return the example's study for people whom three holders know, in few rounds."""
    text = (TAIWAN / "study.toml").read_text(encoding="utf-8")
    text = text.replace("holders_per_person = 1", "holders_per_person = 3")
    text = text.replace('model = "additive"', 'model = "additive"\nrounds = 8')
    return text.replace("[outcome]", '[person]\ncolumn = "person"\n\n[outcome]', 1)


def columns_of(text: str) -> dict[str, list[str]]:
    """Return the columns of each component."""
    found: dict[str, list[str]] = {}
    for block in text.split("[[features]]")[1:]:
        column = re.search(r'^column = "(.*)"', block, re.MULTILINE)[1]
        found.setdefault(re.search(r'^component = "(.*)"', block, re.MULTILINE)[1], []).append(column)
    return found


def write(path, rows, columns) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, ["person", *columns, "default"], extrasaction="ignore")
        out.writeheader()
        out.writerows({"person": f"tw-{number}", **row} for number, row in enumerate(rows))


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    made = Federation(tmp_path_factory.mktemp("vertical"), tuple(HOLDERS))
    of, text = columns_of(study_text()), study_text()
    with gzip.open(TAIWAN / "taiwan_credit.csv.gz", "rt", newline="") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(PEOPLE), strict=False)]
    for name, components in HOLDERS.items():
        settings = made.root / name / "client.toml"
        said = re.sub(
            "^one_row_per_person = true", 'person_column = "person"', settings.read_text(), flags=re.M
        )
        settings.write_text(said)
        write(made.root / name / "records.csv", rows, [c for each in components for c in of.get(each, [])])
    write(made.root / "whole.csv", rows, [column for each in of.values() for column in each])
    with made.processes:
        made.start()
        made.run = made.train(text)
        yield made


@pytest.mark.slow
def test_the_total_that_the_recipient_puts_together_is_the_score_of_the_whole_record(federation, tmp_path):
    assert federation.run["state"] == "done", federation.run
    bundle = federation.run["bundle"]
    for name in HOLDERS:
        refused = assay(
            "client", "points", federation.root / name, bundle, "none", "--person", "x", "--output",
            tmp_path / "x", code=1,
        )  # fmt: skip
        assert "held by another process" in refused
    federation.processes.stop(*HOLDERS)
    purpose = ("--purpose", "consumer_credit")
    scores = set()
    for row in (1, 500, 2999):
        asked = assay_json("model", "request", bundle, *purpose, "--out", tmp_path / f"asked-{row}")
        files = []
        person = f"tw-{row - 1}"
        for name in HOLDERS:
            files.append(tmp_path / f"{name}-{row}.points")
            stated = assay_json(
                "client", "points", federation.root / name, bundle, asked["file"], "--person", person,
                "--output", files[-1], "--expect", asked["fingerprint"],
            )  # fmt: skip
            assert set(stated["components"]) <= set(HOLDERS[name])
        result = assay_json("model", "assemble", bundle, *files, "--key", tmp_path / f"asked-{row}", *purpose)
        wanted = assay_json(
            "model", "explain", bundle, "--input", federation.root / "whole.csv", "--row", row
        )
        for key in ("score", "probability", "band", "base_points", "capped", "reasons", "missing_components"):
            assert result[key] == wanted[key], key
        assert [f["points"] for f in result["features"]] == [f["points"] for f in wanted["features"]]
        scores.add(result["score"])
    assert len(scores) > 1
    for name in HOLDERS:
        assert federation.audit(name)["verified"] is True
        lines = (federation.root / name / "audit.log").read_text().splitlines()
        kinds = [json.loads(line)["leaf"]["kind"] for line in lines]
        assert kinds.count("points") == 3
        assert "tw-" not in "".join(lines)
