"""Holders as files, answered for by any process: the same model as in one process, with and without Ray."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from flower_support import SameNoise, listening, processes, said, same_noise, three
from flwr.app import Context, RecordDict
from toy_study import SUMMED, TEXT, records

from assay.client.records import Records
from assay.privacy.errors import Unavailable
from assay.simulations import flower
from assay.simulations.engine import federate
from assay.simulations.grid import LocalGrid
from assay.simulations.recordfile import read_records, write_records

LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


def environment(**settings):
    """That of a process that finds what this one finds."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | settings


def gone(mark):
    """Wait for the processes with this mark to end; Ray's agents look for their parent every few seconds."""
    end = time.monotonic() + 60
    while (left := processes(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


class LocalNodes:
    """Stands in for Flower's engine: the same apps from the same files, in this process and without Ray."""

    def __init__(self, root, app, nodes, processes=None):
        self._root, self._app, self._nodes = root, app, nodes

    def grid(self):
        def node(number):
            context = Context(1, number, {"partition-id": number}, RecordDict(), {})
            return lambda message, _: self._app(message, context)

        return LocalGrid({str(number): node(number) for number in range(self._nodes)})

    def pause(self):
        pass

    def stop(self):
        pass


class TestHoldersAsFiles:
    @pytest.mark.parametrize("text", [TEXT, SUMMED], ids=["local", "distributed"])
    def test_the_model_is_the_same_bit_for_bit(self, text, tmp_path, monkeypatch):
        monkeypatch.setattr(flower, "FlowerEngine", LocalNodes)
        monkeypatch.setattr(flower, "require_ray", lambda: None)
        monkeypatch.setattr(flower, "holder_app", partial(SameNoise, seen=tmp_path))
        files = federate(text, three(), engine="flower")
        with same_noise():
            assert said(files) == said(federate(text, three()))
        # Control: under its own noise it is another model.
        assert said(files)["theta"] != said(federate(text, three()))["theta"]

    def test_nothing_is_left_in_the_directory_of_temporary_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.setattr(flower, "FlowerEngine", LocalNodes)
        monkeypatch.setattr(flower, "require_ray", lambda: None)
        lines = []
        federate(TEXT, three(), engine="flower", log=lines.append)
        assert list(tmp_path.iterdir()) == []
        assert len(lines) == 3 * 9  # offer, counts, four rounds, two tallies, close

    def test_without_ray_it_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(Unavailable, match=r"needs ray: pip install 'assay\[flower\]'"):
            federate(TEXT, three(), engine="flower")


class TestRecordFile:
    def test_every_value_comes_back(self, tmp_path):
        whole = records(50, seed=3, persons=np.arange(50) // 2)
        given = Records(
            columns=whole.columns,
            labels=whole.labels,
            persons=whole.persons,
            groups=whole.groups,
            patterns=np.arange(50, dtype=np.int32) % 3,
            absent=("house",),
            ignored=("NAME", "ZIP"),
            too_old=7,
        )
        path = tmp_path / "records.arrow"
        write_records(path, given)
        found = read_records(path)
        assert (path.stat().st_mode & 0o777) == 0o600
        assert (found.absent, found.ignored, found.too_old) == (given.absent, given.ignored, given.too_old)
        pairs = [
            (given.labels, found.labels),
            (given.persons, found.persons),
            (given.patterns, found.patterns),
        ]
        for name in ("columns", "groups"):
            ours, theirs = getattr(given, name), getattr(found, name)
            assert list(ours) == list(theirs)
            pairs += [(ours[key], theirs[key]) for key in ours]
        for ours, theirs in pairs:
            assert ours.dtype == theirs.dtype
            same = (
                ours.tolist() == theirs.tolist()
                if ours.dtype == object
                else ours.tobytes() == theirs.tobytes()
            )
            assert same

    def test_what_is_not_there_stays_away(self, tmp_path):
        whole = records(20)
        write_records(tmp_path / "records", Records(columns=whole.columns, labels=whole.labels))
        found = read_records(tmp_path / "records")
        assert (found.persons, found.patterns, found.groups) == (None, None, {})


@pytest.mark.slow
@needs_ray
class TestOnRay:
    def test_the_model_is_the_same_bit_for_bit_whatever_process_answers(self, tmp_path):
        """Ledgers, logs and sessions go from one of two processes to the other; then one of them dies."""
        script = "import flower_support; flower_support.main()"
        seen, home = tmp_path / "seen", tmp_path / "home"
        seen.mkdir()
        home.mkdir()
        command = [sys.executable, "-c", script, str(seen)]
        done = subprocess.run(
            command, env=environment(HOME=str(home)), capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        with same_noise():
            assert found["said"] == said(federate(SUMMED, three()))
        # Control: under its own noise it is another model.
        assert found["said"]["theta"] != said(federate(SUMMED, three()))["theta"]
        answered = defaultdict(set)
        for path in seen.iterdir():
            holder, process = path.name.split("-")
            answered[holder].add(process)
        assert max(len(each) for each in answered.values()) == 2
        assert (found["changed"], os.listdir(home)) == ([], [])
        assert {tuple(each) for each in found["telemetry"]} == {("0", "0")}
        assert "east" in found["aborted"]

    @pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux' tables of processes")
    def test_ctrl_c_leaves_no_process_and_no_file_and_it_listens_on_loopback_only(self, tmp_path):
        mark = f"assay-{uuid.uuid4().hex}"
        with tempfile.TemporaryDirectory(prefix="t") as short:  # a path that Ray's sockets fit in
            script = (
                "from toy_study import TEXT, records\n"
                "from assay.simulations.engine import federate\n"
                "held = {str(seed): records(700, seed=seed) for seed in range(2)}\n"
                "text = TEXT.replace('rounds = 4', 'rounds = 900')\n"
                "federate(text, held, engine='flower', report=lambda step: print(step.kind, flush=True))\n"
            )
            run = subprocess.Popen(
                [sys.executable, "-c", script],
                env=environment(MARK=mark, TMPDIR=short, HOME=str(tmp_path)),
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            try:
                kinds = [run.stdout.readline().strip() for _ in range(3)]
                at_work, addresses = processes(mark), listening(processes(mark))
                os.killpg(run.pid, signal.SIGINT)
                code, left = run.wait(60), gone(mark)
            finally:
                for pid in processes(mark):
                    os.kill(pid, signal.SIGKILL)
                run.stdout.close()
            assert kinds == ["offer", "counts", "round"]
            assert len(at_work) > 3  # Ray's own and one at least that answers
            assert addresses
            assert addresses <= LOOPBACK
            assert code == -signal.SIGINT
            assert left == []
            assert os.listdir(short) == []
            assert os.listdir(tmp_path) == []
