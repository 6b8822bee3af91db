"""Is federating worth it, at which epsilon, with how many holders? Answered before real privacy is spent.

Run it (``python examples/simulate.py [DIRECTORY]``), or paste it into a notebook cell by cell. It makes its
own people, needs no network, and takes less than a minute on two cores.
"""

# %% Five functions
import sys
from pathlib import Path

from assay.simulations import make_population, run_simulation, run_sweep, split_records, write_report

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "simulation")
folder.mkdir(parents=True, exist_ok=True)

# %% People whose true risk is known, and the question about them
people = make_population(folder / "people.parquet", people=5_000)
study, data = people["studies"]["credit"], people["file"]
best = people["bayes_auroc"]["credit"]
print(f"{people['people']:,} people; no model ranks them better than AUROC {best:.3f}")

# %% Who would hold what
for row in split_records(study, data, holders=4, partition="quantity"):
    print(f"{row['name']}: {row['rows']:,} rows, {row['base_rate']:.1%} bad")

# %% One run
run = run_simulation(study, data, folder / "one-run", holders=4, partition="quantity")
base = run["baselines"]
print(
    f"together {run['auroc']:.3f}, each alone {base['local_only_auroc']:.3f}, pooled"
    f" {base['pooled_auroc']:.3f}, pooled without privacy {base['non_private_auroc']:.3f}"
)
weak = min((group for group in run["groups"] if group["auroc"] is not None), key=lambda group: group["auroc"])
print(f"lowest AUROC of a group: {weak['column']} {weak['group']}, {weak['auroc']:.3f}")

# %% Many runs side by side; stop it at any time and call it again with resume=True
rows = run_sweep(study, data, folder / "sweep", holders=[3, 8], epsilons=[1, 4], partition="quantity")
for row in rows:
    print(f"{row['holders']:>3} holders, epsilon {row['epsilon']:g}: AUROC {row['auroc']:.3f}")

# %% A report of all of them: one HTML file, pictures and tables (also written at the end of the sweep)
print(write_report(folder / "sweep")["html"])
