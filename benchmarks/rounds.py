"""How long a training round takes when there is next to nothing to train: Assay against stock Flower.

Run: python benchmarks/rounds.py [--holders 3] [--rounds 100] [--features 1] [--trust distributed]
                                 [--trust local] [--no-flower] [--json]

All systems run as processes of their own over TLS on the loopback interface, from the same certificate
authority and with the same P-384 node keys:

assay    `assay server serve` and one `assay client run` per holder, mutual TLS; a tiny study. A round is
         what it always is: a signed request, a charge in the holder's ledger, a clipped sum with noise, a
         signed answer, all on disk before it leaves, and a checkpoint. With distributed trust, the default,
         the answers are masked and a second exchange opens their sum; with local trust each is a release
flower   `flower-superlink` and one `flower-supernode` per holder, TLS and node authentication, every
         setting as shipped except that nothing is installed at run time. The app sends one small
         message to every node and gets it back

They take turns, Assay a second time at the end, because side by side they would disturb each other. Flower,
whose rounds take seconds, does a tenth of the rounds. Processor time comes from /proc/PID/stat and memory is
VmHWM; both include the processes that a process starts, the memory of those that live at the same time. Works
offline; needs Linux. Ends within ten minutes, also by Ctrl-C, with all its processes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

os.environ.update(
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    OMP_NUM_THREADS="1",
    PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # Flower finds its commands there
)

from cryptography.hazmat.primitives import serialization

from assay.client import enrol
from assay.client.config import CONFIG_FILE, template
from assay.privacy.enrolment import Request
from assay.privacy.errors import Unavailable
from assay.privacy.files import PRIVATE_FILE, write_durably
from assay.server.admin import AdminClient
from assay.server.federation import Federation
from assay.simulations.processes import Processes

START_S, RUN_S, STOP_S, LIMIT_S = 120.0, 200.0, 6.0, 600
EVERY_S = 0.2
ROWS = 1000
MESSAGE_BYTES = 1024
TICK = os.sysconf("SC_CLK_TCK")

STUDY = """\
[study]
name = "rounds"
purpose = "consumer_credit"
contexts = ["card"]

[outcome]
column = "bad"
meaning = "missed a payment"

FEATURES
[training]
rounds = ROUNDS

[privacy]
epsilon = 1.0
delta = 1e-6
trust = "TRUST"
"""
FEATURE = """\
[[features]]
name = "NAME"
column = "NAME"
component = "spending"
kind = "numeric"
domain = [0, 1000]
label = "Amount"

"""

BUNDLE = {
    "LICENSE": "Apache-2.0\n",
    "pyproject.toml": """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "idle"
version = "1.0.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41"]

[tool.flwr.app]
publisher = "assay"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "idle:server"
clientapp = "idle:client"

[tool.flwr.app.config]
out = ""
nodes = 1
rounds = 1
size = 1
""",
    "idle.py": '''\
"""Sends every node one message and gets it back, round after round."""
import time

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client, server = ClientApp(), ServerApp()


@client.train()
def train(message, context):
    return Message(message.content, reply_to=message)


@server.main()
def main(grid, context):
    settings = context.run_config
    while len(nodes := list(grid.get_node_ids())) < int(settings["nodes"]):
        time.sleep(0.1)
    content = {"idle": ConfigRecord({"frame": bytes(int(settings["size"]))})}
    for number in range(int(settings["rounds"])):
        questions = [Message(RecordDict(content), node, "train", group_id=str(number)) for node in nodes]
        replies = list(grid.send_and_receive(questions, timeout=60))
        if len(replies) != len(nodes) or any(reply.has_error() for reply in replies):
            raise RuntimeError("a node did not answer")
        with open(str(settings["out"]), "a") as file:
            file.write(f"{time.time()}\\n")
''',
}


# Processes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Process:
    """One line of /proc: who it is, and the processor time of it and of its children that have ended."""

    pid: int
    parent: int
    cpu_s: float
    started: int


def all_processes() -> dict[int, Process]:
    """Return every process of this machine that can be seen."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()  # proc(5), from field 3 on
                ticks = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
                pid = int(folder.name)
                found[pid] = Process(
                    pid=pid, parent=int(fields[1]), cpu_s=ticks / TICK, started=int(fields[19])
                )
    return found


def family(pid: int, everybody: dict[int, Process]) -> list[Process]:
    """Return a process and everything it has started, directly or not."""
    members = [everybody[pid]] if pid in everybody else []
    for member in members:  # grows while it is walked
        members += [process for process in everybody.values() if process.parent == member.pid]
    return members


def peak_bytes(pid: int) -> int:
    """Return the most memory a process has had at once (VmHWM); 0 when it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


@dataclass
class Meter:
    """Processor time by number of rounds done, and peak memory, of the processes named ``pids``."""

    pids: dict[str, int]
    samples: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)

    def sample(self, done: int) -> None:
        """Look once."""
        everybody = all_processes()
        members = {name: family(pid, everybody) for name, pid in self.pids.items()}
        self.samples.append((done, {name: sum(p.cpu_s for p in who) for name, who in members.items()}))
        for name, who in members.items():
            peak = sum(peak_bytes(process.pid) for process in who)
            self.peaks[name] = max(self.peaks.get(name, 0), peak)

    def cpu_per_round(self, rounds: int) -> dict[str, float]:
        """Return seconds of processor time per round, from after the first to before the last round."""
        within = [sample for sample in self.samples if 1 <= sample[0] < rounds]
        (first, before), (last, after) = within[0], within[-1]
        if last == first:
            raise SystemExit("too few rounds to tell the processor time of one; give more with --rounds")
        return {name: (after[name] - before[name]) / (last - first) for name in self.pids}


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until ``condition()`` is true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what} took more than {seconds:g} s")
        time.sleep(0.05)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Results ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one system did once.

    Attributes:
        start_s: from starting the first process to all holders being connected.
        first_round_s: from the order to train to the end of the first round.
        round_s: from the end of each round to the end of the next.
        cpu_s: processor time per round, by process.
        peaks: most memory in bytes, by process.
    """

    start_s: float
    first_round_s: float
    round_s: tuple[float, ...]
    cpu_s: dict[str, float]
    peaks: dict[str, int]


def result_of(start_s: float, ordered: float, times: list[float], meter: Meter, rounds: int) -> Result:
    """Put one run's figures together; ``times`` are the ends of its rounds, in seconds since 1970."""
    return Result(
        start_s=start_s,
        first_round_s=times[0] - ordered,
        round_s=tuple(np.diff(times).tolist()),
        cpu_s=meter.cpu_per_round(rounds),
        peaks=meter.peaks,
    )


def summary(results: list[Result]) -> dict[str, object]:
    """Return the figures of all runs of one system: medians over rounds, means over holders and runs."""
    rounds = [seconds for result in results for seconds in result.round_s]
    first = results[0].cpu_s
    centre, *holders = first  # the coordinator was started first

    def cpu_ms(names: list[str]) -> float:
        return round(1e3 * statistics.mean(r.cpu_s[name] for r in results for name in names), 1)

    def peak_mb(names: list[str]) -> int:
        return round(max(r.peaks[name] for r in results for name in names) / 1e6)

    return {
        "rounds": len(rounds) + len(results),
        "round_s": round(statistics.median(rounds), 4),
        "round_s_mean": round(statistics.mean(rounds), 4),
        "round_s_least": round(min(rounds), 4),
        "round_s_most": round(max(rounds), 4),
        "start_s": round(statistics.mean(r.start_s for r in results), 1),
        "first_round_s": round(statistics.mean(r.first_round_s for r in results), 2),
        "coordinator_cpu_ms": cpu_ms([centre]),
        "holder_cpu_ms": cpu_ms(holders),
        "coordinator_peak_mb": peak_mb([centre]),
        "holder_peak_mb": peak_mb(holders),
    }


# Assay --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every system is measured on.

    Attributes:
        holders: how many.
        features: of the study; a round has 9 values for each.
        rounds: of Assay.
    """

    holders: int
    features: int
    rounds: int

    def study(self, trust: str) -> str:
        """Return the study file."""
        features = "".join(FEATURE.replace("NAME", name) for name in self.columns)
        filled = STUDY.replace("FEATURES\n", features).replace("ROUNDS", str(self.rounds))
        return filled.replace("TRUST", trust)

    @property
    def columns(self) -> list[str]:
        """Names of the features."""
        return [f"amount_{number}" for number in range(1, self.features + 1)]

    @property
    def flower_rounds(self) -> int:
        """Rounds of Flower: a tenth, but enough to measure."""
        return max(4, self.rounds // 10)


def set_up(root: Path, task: Task) -> list[str]:
    """Make a coordinator's and the holders' directories; return the holders' names."""
    names = [f"holder-{number}" for number in range(1, task.holders + 1)]
    with Federation.init(root / "coordinator", "Benchmark", "127.0.0.1", free_port()) as federation:
        for seed, name in enumerate(names):
            home = root / name
            enrol.init(home, name)
            joined = federation.admit(Request.read(home / enrol.REQUEST_FILE))
            write_durably(home / "JOIN.toml", joined.to_bytes(), mode=PRIVATE_FILE)
            enrol.join(home, home / "JOIN.toml", federation.fingerprint)
            data = '[data]\nkind = "csv"\npath = "records.csv"\none_row_per_person = true\n\n[policy]'
            settings = template(name).replace("[policy]", data, 1)
            write_durably(home / CONFIG_FILE, settings.encode(), mode=PRIVATE_FILE)
            rng = np.random.default_rng(seed)
            amounts, luck = rng.uniform(0, 1000, (ROWS, task.features)), rng.random(ROWS)
            cells = [",".join(f"{amount:.2f}" for amount in row) for row in amounts]
            bad = (luck < amounts[:, 0] / 2000).astype(int)
            lines = [f"{row},{label}" for row, label in zip(cells, bad, strict=True)]
            (home / "records.csv").write_text("\n".join([",".join([*task.columns, "bad"]), *lines]) + "\n")
    return names


def assay(root: Path, task: Task, trust: str) -> Result:
    """Serve, connect, train once."""
    names, rounds = set_up(root, task), task.rounds
    coordinator = root / "coordinator"
    with Processes(root / "logs") as processes:
        begin = time.monotonic()
        pids = {"coordinator": processes.start("coordinator", "server", "serve", str(coordinator)).pid}
        for name in names:
            pids[name] = processes.start(name, "client", "run", str(root / name)).pid
        wait_for(lambda: online(coordinator, processes) == task.holders, START_S, "starting Assay")
        start_s = time.monotonic() - begin
        meter, ordered, done = Meter(pids), time.time(), 0
        run = AdminClient.call(coordinator, "train", {"study": task.study(trust)})["run"]
        while True:
            answer = AdminClient.call(coordinator, "events", {"run": run, "since": 0})
            done = sum(event["kind"] == "round" for event in answer["events"])
            meter.sample(done)
            if answer["state"] not in ("queued", "running"):
                break
            if time.time() - ordered > RUN_S:
                raise SystemExit(f"Assay took more than {RUN_S:g} s for {rounds} rounds")
            time.sleep(EVERY_S)
        if done != rounds:
            raise SystemExit(f"Assay's run ended after {done} rounds: {answer['message']}")
    with Federation(coordinator) as federation:
        times = [event.time for event in federation.registry.events_since(run) if event.kind == "round"]
    return result_of(start_s, ordered, times, meter, rounds)


def online(coordinator: Path, processes: Processes) -> int:
    """Return how many holders are connected."""
    processes.check()
    try:
        status = AdminClient.call(coordinator, "status", {})
    except Unavailable:
        return 0
    return sum(holder["online"] for holder in status["holders"])


# Stock Flower -------------------------------------------------------------------------------------


@contextmanager
def started(logs: Path) -> Iterator[Callable[..., int]]:
    """Give a function that starts a command under a name; end all of them, and what they started."""
    running: list[subprocess.Popen[bytes]] = []

    def start(name: str, *command: object, home: Path) -> int:
        with (logs / f"{name}.log").open("wb") as sink:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=os.environ | {"FLWR_HOME": str(home)},
                start_new_session=True,  # Ctrl-C reaches this script alone, which then ends the others
            )
        running.append(process)
        return process.pid

    try:
        yield start
    finally:
        everybody = all_processes()
        members = [member for process in running for member in family(process.pid, everybody)]
        for process in reversed(running):
            process.terminate()
        end = time.monotonic() + STOP_S
        while time.monotonic() < end and any(process.poll() is None for process in running):
            time.sleep(0.05)
        everybody = all_processes()
        for member in members:  # the same process still, not another one that was given its number
            if member.pid in everybody and everybody[member.pid].started == member.started:
                with suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)
        for process in running:
            process.wait()


def flower(root: Path, task: Task) -> Result:
    """Serve, connect, run the app once."""
    from flwr.cli.build import build_fab_from_disk
    from flwr.common.serde import user_config_to_proto
    from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
    from flwr.proto.fab_pb2 import Fab
    from flwr.supercore.control import ControlHttpClient

    names, rounds = set_up(root, task), task.flower_rounds  # for its certificates and keys
    for name, text in BUNDLE.items():
        path = root / "bundle" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    fab = build_fab_from_disk(root / "bundle")
    logs, out = root / "logs", root / "times.txt"
    logs.mkdir()
    out.touch()
    with Federation(root / "coordinator") as federation:
        ca, certificate, key = federation.ca_certificate, federation.server_certificate, federation.server_key
    address = f"127.0.0.1:{free_port()}"
    host, port = address.split(":")
    with started(logs) as start:
        begin = time.monotonic()
        command = ["flower-superlink", "--host", host, "--port", port, "--enable-supernode-auth"]
        command += ["--ssl-ca-certfile", ca, "--ssl-certfile", certificate, "--ssl-keyfile", key]
        command += ["--disable-runtime-dependency-installation"]
        pids = {"superlink": start("superlink", *command, home=root / "flower")}
        wait_for(lambda: listens(host, int(port)), START_S, "starting flower-superlink")
        control = ControlHttpClient.from_server_address(address, False, ca.read_bytes(), interceptors=[])
        with closing(control):
            for name in names:
                node, public = node_key(root / name)
                control.RegisterNode(RegisterNodeRequest(public_key=public, name=name))
                command = ["flower-supernode", "--superlink", address, "--root-certificates", ca]
                command += ["--auth-supernode-private-key", node, "--host", host, "--port", free_port()]
                pids[name] = start(name, *command, home=root / name / "flower")

            def connected() -> bool:
                nodes = control.ListNodes(ListNodesRequest()).nodes_info
                return sum(node.status == "online" for node in nodes) == task.holders

            wait_for(connected, START_S, "starting the supernodes")
            start_s = time.monotonic() - begin
            meter, ordered = Meter(pids), time.time()
            config = {"out": str(out), "rounds": rounds, "nodes": task.holders, "size": MESSAGE_BYTES}
            control.StartRun(
                StartRunRequest(
                    fab=Fab(hash_str=hashlib.sha256(fab).hexdigest(), content=fab),
                    override_config=user_config_to_proto(config),
                )
            )
            while (done := len(out.read_text().splitlines())) < rounds and time.time() - ordered < RUN_S:
                meter.sample(done)
                time.sleep(EVERY_S)
    times = [float(line) for line in out.read_text().splitlines()]
    if len(times) < 3:
        raise SystemExit(f"Flower did not do three rounds within {RUN_S:g} s")
    return result_of(start_s, ordered, times, meter, rounds)


def node_key(home: Path) -> tuple[Path, bytes]:
    """Write a holder's transport key the way flower-supernode reads it; return it and the public key."""
    key = enrol.load_keys(home).transport
    path = home / "node.key"
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_durably(path, text, mode=PRIVATE_FILE)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return path, public


def listens(host: str, port: int) -> bool:
    """Say whether somebody accepts connections there."""
    try:
        socket.create_connection((host, port), 0.5).close()
    except OSError:
        return False
    return True


# The comparison -----------------------------------------------------------------------------------

LINES = (
    ("round_s", "from one round to the next, median, s", "{:.3f}"),
    ("round_s_mean", "  mean", "{:.3f}"),
    ("round_s_least", "  shortest", "{:.3f}"),
    ("round_s_most", "  longest", "{:.3f}"),
    ("rounds", "  rounds measured", "{}"),
    ("coordinator_cpu_ms", "processor time per round, coordinator, ms", "{:.1f}"),
    ("holder_cpu_ms", "processor time per round, each holder, ms", "{:.1f}"),
    ("coordinator_peak_mb", "peak memory, coordinator, MB", "{}"),
    ("holder_peak_mb", "peak memory, each holder, MB", "{}"),
    ("start_s", "from start to all holders connected, s", "{:.1f}"),
    ("first_round_s", "from the order to train to the first round's end, s", "{:.2f}"),
)


def out_of_time(*_: object) -> None:
    """End the script, and with it all its processes."""
    raise SystemExit(f"not done within {LIMIT_S} s; give fewer holders or rounds")


def measure(task: Task, trusts: list[str], *, with_flower: bool) -> dict[str, dict[str, object]]:
    """Run the systems in turn, Assay's twice; return the figures of each."""
    systems: dict[str, Callable[[Path], Result]] = {
        trust: lambda root, trust=trust: assay(root, task, trust) for trust in trusts
    }
    if with_flower:
        systems["flower"] = lambda root: flower(root, task)
    results: dict[str, list[Result]] = {name: [] for name in systems}
    with tempfile.TemporaryDirectory(prefix="assay-rounds-") as scratch:
        for turn, name in enumerate([*systems, *trusts]):
            root = Path(scratch) / str(turn)
            root.mkdir()
            results[name].append(systems[name](root))
    return {name: summary(each) for name, each in results.items()}


def comparisons(found: dict[str, dict[str, object]]) -> dict[str, float]:
    """Return what follows from the medians: ratios to Flower, and what secure aggregation adds."""
    medians = {name: float(str(each["round_s"])) for name, each in found.items()}
    ratios = {
        f"{name}_times_faster_than_flower": round(medians["flower"] / seconds, 1)
        for name, seconds in medians.items()
        if "flower" in medians and name != "flower"
    }
    if {"distributed", "local"} <= medians.keys():
        ratios["secure_aggregation_adds_s"] = round(medians["distributed"] - medians["local"], 4)
    return ratios


def arguments() -> argparse.Namespace:
    """Read and check the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--holders", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=100, help="of Assay; Flower does a tenth")
    parser.add_argument("--features", type=int, default=1, help="each gives 9 values a round")
    parser.add_argument("--trust", action="append", choices=("distributed", "local"))
    parser.add_argument("--no-flower", action="store_true", help="measure Assay alone")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.trust = list(dict.fromkeys(options.trust or ["distributed"]))
    fewest = 3 if "distributed" in options.trust else 2
    if not (
        fewest <= options.holders <= 10 and 20 <= options.rounds <= 1000 and 1 <= options.features <= 100
    ):
        parser.error(f"--holders is {fewest} to 10, --rounds 20 to 1000, --features 1 to 100")
    return options


def main() -> None:
    """Run and print."""
    options = arguments()
    task = Task(holders=options.holders, features=options.features, rounds=options.rounds)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(LIMIT_S)
    load = os.getloadavg()[0]
    found = measure(task, options.trust, with_flower=not options.no_flower)
    facts = {"holders": task.holders, "features": task.features, "cores": os.cpu_count(), "load_before": load}
    if options.json:
        print(json.dumps({**facts, **found, **comparisons(found)}))
        return
    print(
        "{holders} holders, {features} feature(s), {cores} cores, load before {load_before:.1f}".format(
            **facts
        )
    )
    print(f"{'':<52}{''.join(f'{name:>13}' for name in found)}")
    for key, words, form in LINES:
        print(f"{words:<52}{''.join(f'{form.format(each[key]):>13}' for each in found.values())}")
    for words, number in comparisons(found).items():
        print(f"{words.replace('_', ' ')}: {number:g}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped")
