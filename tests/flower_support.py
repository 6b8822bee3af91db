"""For tests of Flower's simulation engine: the same noise everywhere, and what its processes are up to.

Ray leaves files and processes to the garbage collector, which tests take for errors: it runs in a process of
its own, ``python -c "import flower_support; flower_support.main()" FOLDER``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from toy_study import SUMMED, TEXT, records

from assay.privacy.mechanism import IntegerMechanism
from assay.server.rounds import Aborted
from assay.simulations import flower, flowerengine
from assay.simulations.engine import Federated, federate
from assay.simulations.flower import HolderApp


def three():
    """The holders of these tests."""
    return {name: records(700, seed=i) for i, name in enumerate(("east", "north", "south"))}


def said(run: Federated) -> dict[str, Any]:
    """Return what two runs have in common if they give the same model, as JSON has it."""
    trained = run.trained
    values = {"theta": trained.theta.tobytes().hex(), "counts": trained.counts.tobytes().hex()}
    return json.loads(json.dumps({**values, "audit": trained.audit, "spent": run.spent}))


_noisy = IntegerMechanism.noisy


def _same(self: IntegerMechanism, clipped_sum: np.ndarray, entropy: object = None) -> np.ndarray:
    """The exact sampler, under a key that is a digest of what the noise is added to."""
    key = hashlib.sha256(repr(self).encode() + clipped_sum.tobytes()).digest()
    return _noisy(self, clipped_sum, entropy=lambda size: key[:size])


@contextmanager
def same_noise() -> Iterator[None]:
    """Make every release's noise a function of its sum, in this process."""
    IntegerMechanism.noisy = _same
    try:
        yield
    finally:
        IntegerMechanism.noisy = _noisy


class SameNoise(HolderApp):
    """Answers under :func:`same_noise` in whatever process it is put, and notes in which."""

    def __init__(self, root: Path, *, seen: Path, **settings: Any) -> None:
        super().__init__(root, **settings)
        self._seen = seen

    def __call__(self, message: Any, context: Any) -> Any:
        (self._seen / f"{context.node_config['partition-id']}-{os.getpid()}").touch()
        with same_noise():
            return super().__call__(message, context)


class Dying(HolderApp):
    """Kills its process when it is first asked to release something for holder 0."""

    def __call__(self, message: Any, context: Any) -> Any:
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 0:
            os._exit(9)
        return super().__call__(message, context)


def main() -> None:
    """Run a federation on Ray under the same noise, then one whose process dies; print what came of it."""
    seen = Path(sys.argv[1])
    told, before = [], dict(os.environ)

    def report(step: object) -> None:
        import flwr.supercore.telemetry

        sent = flwr.supercore.telemetry.FLWR_TELEMETRY_ENABLED
        told.append([sent, os.environ["RAY_USAGE_STATS_ENABLED"]])

    flowerengine._cores = lambda: 2
    flower.holder_app = partial(SameNoise, seen=seen)
    result = {"said": said(federate(SUMMED, three(), engine="flower", report=report)), "telemetry": told}
    changed = {name for name in before if os.environ.get(name) != before[name]}
    flower.holder_app = Dying
    try:
        federate(TEXT, three(), engine="flower")
    except Aborted as error:
        result["aborted"] = str(error)
    sys.stdout.write(json.dumps(result | {"changed": sorted(changed)}) + "\n")


def processes(mark: str) -> list[int]:
    """Return the processes that have ``mark`` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def listening(pids: list[int]) -> set[str]:
    """Return the addresses (hexadecimal, as the kernel writes them) that these processes listen on."""
    sockets = set()
    for pid in pids:
        for path in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(path).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                found.add(fields[1].partition(":")[0])
    return found
