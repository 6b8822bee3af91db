"""Assay's holder daemon against Flower's own SuperLink: notices an upgrade of flwr that changes the protocol.

The bundle that starts the run holds no code: both its components name modules that are installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fleet_support import Pki, make_daemon, wait_for

TESTS = Path(__file__).parent
BIN = Path(sys.executable).parent

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "contract"
version = "1.0.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41"]

[tool.flwr.app]
publisher = "assay"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "flower_contract_app:server"
clientapp = "flower_contract_app:client"

[tool.flwr.app.config]
out = ""
"""

APP = '''
"""Asks every node once and writes down what it said."""
import json
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client, server = ClientApp(), ServerApp()


@server.main()
def main(grid, context):
    content = {"assay": ConfigRecord({"frame": b"echo:stock"})}
    questions = [Message(RecordDict(content), node, "query") for node in grid.get_node_ids()]
    frames = [
        reply.error.reason if reply.has_error() else reply.content["assay"]["frame"].decode()
        for reply in grid.send_and_receive(questions, timeout=30)
    ]
    path = Path(str(context.run_config["out"]))
    path.with_suffix(".part").write_text(json.dumps(frames))
    path.with_suffix(".part").rename(path)
'''


@pytest.fixture
def superlink(tmp_path):
    """A stock SuperLink with TLS and node authentication; yields its port and authority."""
    pki = Pki(tmp_path / "pki")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "flower_contract_app.py").write_text(APP)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [BIN / "flower-superlink", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
    command += ["--ssl-ca-certfile", pki.ca, "--ssl-certfile", pki.server.certificate_file]
    command += ["--ssl-keyfile", pki.server.key_file]
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path / "modules"),
        "FLWR_HOME": str(tmp_path / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (tmp_path / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        wait_for(lambda: process.poll() is not None or _listens(port), 30)
        yield pki, port
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(8)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait(5)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of flwr's own command line
def test_a_stock_superlink_can_ask_an_assay_holder(superlink, tmp_path, monkeypatch):
    from flwr.cli.build import build_fab_from_disk
    from flwr.common.serde import user_config_to_proto
    from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
    from flwr.proto.fab_pb2 import Fab
    from flwr.supercore.control import ControlHttpClient

    pki, port = superlink
    holder = pki.issue("holder")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "pyproject.toml").write_text(PYPROJECT)
    (bundle / "LICENSE").write_text("Apache-2.0")
    fab = build_fab_from_disk(bundle)
    out = tmp_path / "out.json"
    control = ControlHttpClient.from_server_address(
        f"127.0.0.1:{port}", False, pki.ca.read_bytes(), interceptors=[]
    )
    daemon = make_daemon(tmp_path, pki, holder, f"localhost:{port}")
    try:
        control.RegisterNode(RegisterNodeRequest(public_key=holder.public_key, name="holder"))
        daemon.start()
        wait_for(
            lambda: [n for n in control.ListNodes(ListNodesRequest()).nodes_info if n.status == "online"]
        )
        control.StartRun(
            StartRunRequest(
                fab=Fab(hash_str=hashlib.sha256(fab).hexdigest(), content=fab),
                override_config=user_config_to_proto({"out": str(out)}),
            )
        )
        wait_for(out.exists, 45)
        assert json.loads(out.read_text()) == ["answer:stock"], daemon.text()
        assert daemon.terminate() < 3
    finally:
        daemon.kill()
        control.close()
