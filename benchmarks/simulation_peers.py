"""What `simulation.py` measures, each in a process of its own that prints one line of JSON at its end.

All train the same model, a logistic regression over piecewise linear features: nine weights for each column.
The peers get it as they like it best, as one linear layer over ready-made weights of the knots. Their data
come from the same generator. Every program keeps to one thread; Flower has as many processes as cores.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

KNOTS = 9  # of a column with Assay's grid: eight knots and a cell for what is missing
LEARNING_RATE = 0.1
HIGHEST = 1000.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is simulated.

    Attributes:
        holders: how many.
        rows: of each.
        rounds: of gradients.
        features: numeric columns.
        batch: rows of one step of Opacus.
        noise_multiplier: of a holder in one round.
        max_grad_norm: bound of one person's gradient.
        cores: of this machine.
    """

    holders: int
    rows: int
    rounds: int
    features: int
    batch: int = 32
    noise_multiplier: float = 1.0
    max_grad_norm: float = 1.0
    cores: int = 1

    def json(self) -> str:
        """Return it for a command line."""
        return json.dumps(asdict(self))

    def study(self) -> str:
        """Return the study file."""
        head = '[study]\nname = "simulation"\npurpose = "consumer_credit"\ncontexts = ["card"]\n\n'
        outcome = '[outcome]\ncolumn = "bad"\nmeaning = "missed a payment"\n\n'
        columns = "".join(
            f'[[features]]\nname = "f{i}"\ncolumn = "f{i}"\ncomponent = "spending"\nkind = "numeric"\n'
            f"domain = [0, {HIGHEST:g}]\n\n"
            for i in range(self.features)
        )
        privacy = '[privacy]\nepsilon = 1.0\ndelta = 1e-6\ntrust = "local"\n'
        return f"{head}{outcome}{columns}[training]\nrounds = {self.rounds}\n\n{privacy}"

    def data(self, number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the columns [rows, features] and labels [rows] of one holder."""
        rng = np.random.default_rng(number)
        values = rng.uniform(0, HIGHEST, (self.rows, self.features))
        risk = values[:, :3].mean(axis=1) / HIGHEST
        return values, (rng.random(self.rows) < risk).astype(np.float64)

    def weights(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the same as weights of knots [rows, KNOTS * features], and the labels, float32."""
        values, labels = self.data(number)
        place = values / HIGHEST * (KNOTS - 2)
        cell = np.minimum(place.astype(np.int64), KNOTS - 3)
        found = np.zeros((self.rows, self.features, KNOTS), dtype=np.float32)
        rows, columns = np.ogrid[: self.rows, : self.features]
        found[rows, columns, cell] = 1 - (place - cell)
        found[rows, columns, cell + 1] = place - cell
        return found.reshape(self.rows, -1), labels.astype(np.float32)


class Clock:
    """Ends of rounds, on the wall in seconds since 1970 and in processor time of this process."""

    def __init__(self) -> None:
        self._began, self._ends = (time.time(), time.process_time()), list[tuple[float, float]]()

    def tick(self) -> None:
        """A round has ended."""
        self._ends.append((time.time(), time.process_time()))

    def told(self) -> dict[str, Any]:
        """Return the ends, and what all took."""
        return {
            "ends": [wall for wall, _ in self._ends],
            "cpu_ends": [cpu for _, cpu in self._ends],
            "train_s": time.time() - self._began[0],
            "train_cpu_s": time.process_time() - self._began[1],
        }


def assay(task: Task, engine: str = "fast") -> dict[str, Any]:
    """Assay's own engines."""
    from assay.client.records import Records
    from assay.simulations.engine import federate

    holders = {}
    for number in range(task.holders):
        values, labels = task.data(number)
        columns = {f"f{i}": np.ascontiguousarray(values[:, i]) for i in range(task.features)}
        holders[f"holder-{number:05d}"] = Records(columns=columns, labels=labels)
    clock = Clock()
    federate(
        task.study(),
        holders,
        engine=engine,
        report=lambda step: clock.tick() if step.kind == "round" else None,
    )
    return clock.told()


def flower(task: Task) -> dict[str, Any]:
    """Flower's simulation engine and Opacus, as in Flower's example of the two.

    In their favour: no evaluation, no epsilon after every round, one process for each core, and Ray's
    processes as important to the kernel as others (Ray makes them nice).
    """
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_worker_niceness="0"
    )
    import torch
    from flwr.client import ClientApp, NumPyClient
    from flwr.common import ndarrays_to_parameters
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import run_simulation
    from torch.utils.data import DataLoader, TensorDataset

    class Client(NumPyClient):
        def __init__(self, number: int) -> None:
            x, y = (torch.from_numpy(each) for each in task.weights(number))
            self.loader = DataLoader(TensorDataset(x, y), batch_size=task.batch, shuffle=True)
            self.model = torch.nn.Linear(KNOTS * task.features, 1)

        def fit(self, parameters: Any, config: Any) -> Any:
            from opacus import PrivacyEngine

            warnings.filterwarnings("ignore")
            logging.getLogger("opacus").setLevel(logging.ERROR)
            torch.set_num_threads(1)
            self.model.load_state_dict(
                {name: torch.tensor(each) for name, each in zip(("weight", "bias"), parameters, strict=True)}
            )
            model, optimizer, loader = PrivacyEngine(secure_mode=False).make_private(
                module=self.model,
                optimizer=torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE),
                data_loader=self.loader,
                noise_multiplier=task.noise_multiplier,
                max_grad_norm=task.max_grad_norm,
            )
            criterion = torch.nn.BCEWithLogitsLoss()
            for x, y in loader:
                optimizer.zero_grad()
                criterion(model(x)[:, 0], y).backward()
                optimizer.step()
            return [each.detach().numpy() for each in self.model.parameters()], task.rows, {}

    clock = Clock()

    class Timed(FedAvg):
        def aggregate_fit(self, *arguments: Any) -> Any:
            if len(arguments[1]) != task.holders:
                raise SystemExit(f"flower: {len(arguments[1])} of {task.holders} clients answered")
            found = super().aggregate_fit(*arguments)
            clock.tick()
            return found

    width = KNOTS * task.features
    first = ndarrays_to_parameters([np.zeros((1, width), np.float32), np.zeros(1, np.float32)])

    def server(context: Any) -> ServerAppComponents:
        strategy = Timed(
            fraction_fit=1.0,
            fraction_evaluate=0.0,
            min_fit_clients=task.holders,
            min_available_clients=task.holders,
            initial_parameters=first,
        )
        return ServerAppComponents(config=ServerConfig(num_rounds=task.rounds), strategy=strategy)

    run_simulation(
        ServerApp(server_fn=server),
        ClientApp(client_fn=lambda context: Client(int(context.node_config["partition-id"])).to_client()),
        task.holders,
        backend_config={
            "init_args": {"address": "local", "num_cpus": task.cores, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    told = clock.told()
    del told["cpu_ends"], told["train_cpu_s"]  # of this process only; the work is done in others
    return told


def pfl(task: Task) -> dict[str, Any]:
    """Apple's pfl: one full-batch step at each user, clipped and with noise per user, as it is meant.

    In its favour: no evaluation, all data ready in memory as tensors, no clipping of a person.
    """
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel
    from pfl.privacy.gaussian_mechanism import GaussianMechanism
    from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism

    class Logistic(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.criterion = (
                torch.nn.Linear(KNOTS * task.features, 1),
                torch.nn.BCEWithLogitsLoss(),
            )

        def loss(self, x: Any, y: Any, is_eval: bool = False) -> Any:
            return self.criterion(self.layer(x)[:, 0], y)

        def metrics(self, x: Any, y: Any, is_eval: bool = False) -> dict[str, Weighted]:
            return {"rows": Weighted(0, len(y))}

    class Tick(TrainingProcessCallback):
        def after_central_iteration(self, *arguments: Any, **named: Any) -> Any:
            clock.tick()
            return False, Metrics()

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    users = {}
    for number in range(task.holders):
        x, y = (torch.from_numpy(each) for each in task.weights(number))
        users[str(number)] = Dataset(raw_data=[x, y])
    module = Logistic()
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), 1.0))
    training = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", list(users)))
    noise = CentrallyAppliedPrivacyMechanism(GaussianMechanism.construct_single_iteration(1.0, 1.0, 1e-6))
    clock = Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=10**9,
            train_cohort_size=task.holders,
            val_cohort_size=0,
        ),
        SimulatedBackend(training, training, postprocessors=[noise]),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=None),
        None,
        [Tick()],
        send_metrics_to_platform=False,
    )
    return clock.told()


PROGRAMS = {"assay": assay, "flower": flower, "pfl": pfl}


def main() -> None:
    """Run one program: NAME TASK."""
    name, task = sys.argv[1], Task(**json.loads(sys.argv[2]))
    print(json.dumps(PROGRAMS[name](task)), flush=True)


if __name__ == "__main__":
    main()
