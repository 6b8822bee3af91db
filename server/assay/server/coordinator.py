"""The coordinator process: Flower's fleet on the public port, runs one at a time, administration on a socket.

The database is the truth. A run that was interrupted (signal, crash, power cut) is taken up again from its
checkpoint when the coordinator starts; holders answer a repeated question with the same bytes.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from assay.models.study import parse_study
from assay.privacy.errors import AssayError, Refused, Unavailable
from assay.privacy.files import make_private_dir
from assay.server.admin import AdminServer
from assay.server.courier import Courier
from assay.server.federation import Federation
from assay.server.fleet import FleetGrid, FleetServer
from assay.server.publish import publish, valid_s
from assay.server.records import Checkpoint, Collected, Session
from assay.server.records import Run as RunRecord
from assay.server.registry import Registry
from assay.server.rounds import Aborted, Interrupted, Progress, Run, Trained
from assay.server.witness import holder_summaries

__all__ = ["Coordinator", "run_summary"]

_LOG = logging.getLogger("assay.server")
# How long a run that was just started waits for admitted holders that are still connecting.
GATHER_S = 15.0
_IDLE_S = 0.5
# A run that the machine cannot carry on with is tried again after this pause.
RETRY_S = 10.0


class Coordinator:
    """Serves one federation until :meth:`stop`."""

    def __init__(self, federation: Federation) -> None:
        self._federation, self._registry = federation, federation.registry
        self._stop, self._work = threading.Event(), threading.Event()
        self._admitted: set[str] = set()
        federation.ensure_server_certificate()
        settings = federation.settings
        self._fleet = FleetServer(
            settings.listen,
            settings.port,
            certfile=federation.server_certificate,
            keyfile=federation.server_key,
            client_ca=federation.ca_certificate,
            home=federation.directory,
        )
        handlers = {"status": self._status, "train": self._train, "events": self._events}
        self._admin = AdminServer(federation.directory, handlers)

    def serve(self) -> None:
        """Serve until :meth:`stop` is called from a signal handler or another thread.

        Raises:
            AssayError: the port or the directory is taken, or a key is wrong.
        """
        with self._admin:
            self._admit_all()
            self._fleet.start()
            _LOG.info("serving %s on %s", self._federation.settings.name, self._federation.settings.address)
            try:
                while not self._stop.is_set():
                    self._work.clear()
                    self._admit_all()
                    run = self._next()
                    if run is None:
                        self._work.wait(_IDLE_S)
                    else:
                        self._execute(run)
            finally:
                self._fleet.stop()
                _LOG.info("stopped")

    def stop(self) -> None:
        """Ask :meth:`serve` to return; a run in progress is kept at its last checkpoint."""
        self._stop.set()
        self._work.set()
        self._fleet.interrupt()

    def _admit_all(self) -> None:
        """Let in whom the signed roster names, and nobody else; also those admitted meanwhile."""
        members = {member.name: member for member in self._federation.roster.members()}
        for name in self._admitted - members.keys():
            self._fleet.revoke(name)
        for member in members.values():
            self._fleet.admit(member.name, member.transport_public.encode("ascii"))
        self._admitted = set(members)

    def _next(self) -> RunRecord | None:
        running = self._registry.runs("running")
        return running[0] if running else self._registry.next_queued()

    def _execute(self, record: RunRecord) -> None:
        """Carry one run to its end and write down how it ended; no error of a run stops the service."""
        run = record.run
        try:
            self._registry.set_state(run, "running")
            state, message = "done", self._train_one(record)
        except Interrupted:
            _LOG.info("run %s is kept at its last checkpoint", run[:8])
            return
        except (Unavailable, OSError) as error:
            # The disk is full or the database busy: holders have paid for this run, so it is not given up.
            _LOG.warning("run %s waits and is tried again: %s", run[:8], error)
            self._stop.wait(RETRY_S)
            return
        except Refused as error:
            state, message = "refused", str(error)
        except Aborted as error:
            state, message = "aborted", str(error)
        except AssayError as error:
            state, message = "failed", str(error)
        except Exception:  # noqa: BLE001 - the run fails, the service goes on
            _LOG.exception("run %s failed", run[:8])
            state, message = "failed", "a defect; the coordinator's log has the details"
        self._end(run, state, message)

    def _end(self, run: str, state: str, message: str) -> None:
        """Write down how a run ended, again and again while the disk is full."""
        while True:
            try:
                self._registry.set_state(run, state, message)
            except (Unavailable, OSError) as error:
                _LOG.warning("run %s is %s, which cannot be stored: %s", run[:8], state, error)
                if self._stop.wait(RETRY_S):
                    return
            else:
                _LOG.info("run %s: %s %s", run[:8], state, message)
                return

    def _train_one(self, record: RunRecord) -> str:
        name = record.run
        members = self._federation.roster.members()
        roster = {member.name: bytes.fromhex(member.identity_public) for member in members}
        settings = self._federation.settings
        with self._fleet.run(name) as grid:
            run = Run(
                run=name,
                study_text=record.study,
                courier=self._courier(grid, roster),
                minimum_holders=settings.minimum_holders,
                timeout_s=float(settings.round_timeout_s),
                store=_RunStore(self._registry, name),
                report=lambda progress: self._report(name, progress),
                stopping=self._stop.is_set,
            )
            checkpoint = self._registry.latest_checkpoint(name)
            holders = sorted(self._fleet.wait_online(roster, GATHER_S)) if checkpoint is None else []
            trained = run.train(holders, checkpoint.state if checkpoint else None)
            path = self._publish(run, trained)
            run.close("done")
        return f"models/{path.name}"

    def _courier(self, grid: FleetGrid, roster: Mapping[str, bytes]) -> Courier:
        """Return the courier of one run, which knows where every holder's ledger was last seen."""
        seen = self._registry.heads()
        return Courier(
            grid,
            identity=self._federation.identity,
            federation=self._federation.id,
            roster=roster,
            heads={name: seen[key.hex()] for name, key in roster.items() if key.hex() in seen},
            keep=lambda new: self._registry.save_heads({roster[n].hex(): heads for n, heads in new.items()}),
        )

    def _publish(self, run: Run, trained: Trained) -> Path:
        """Write the bundle and register it; doing it again after a crash replaces it."""
        created = time.time()
        folder = make_private_dir(self._federation.directory / "models")
        path = folder / f"{run.study.name}-{run.run[:8]}.bundle"
        identity = self._federation.identity
        label = publish(path, study=run.study, trained=trained, identity=identity, created=created)
        self._registry.add_model(
            run.run,
            path=str(path.relative_to(self._federation.directory)),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            created=created,
            expires=created + valid_s(run.study),
            purpose=run.study.purpose,
            label=label,
        )
        return path

    def _report(self, run: str, progress: Progress) -> None:
        self._admit_all()  # a holder revoked during a run is shut out from the next round on
        detail = asdict(progress)
        kind = detail.pop("kind")
        detail["holders"] = list(detail["holders"])
        if kind in ("counts", "resumed") and progress.rounds:
            self._registry.set_rounds(run, progress.rounds)
        whole = kind in ("counts", "resumed", "round", "calibration", "audit")
        if whole and self._registry.run(run).holders != progress.holders:
            self._registry.set_holders(run, detail["holders"])
        self._registry.add_event(run, kind, detail)
        step = f"{kind} {progress.round}/{progress.rounds}"
        one = kind in ("dropped", "ledger")  # these are about a holder, the others about the whole run
        who = ", ".join(progress.holders) if one else f"{len(progress.holders)} holder(s)"
        level = logging.WARNING if kind == "ledger" else logging.INFO
        spent = f"epsilon {progress.epsilon:.4g}"
        _LOG.log(level, "run %s: %s, %s, %s %s", run[:8], step, who, spent, progress.detail)

    def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        online = self._fleet.online()
        return {
            "federation": self._federation.settings.name,
            "fingerprint": self._federation.fingerprint,
            "address": self._federation.settings.address,
            "holders": holder_summaries(self._federation, online),
            "runs": [run_summary(run) for run in self._registry.runs()],
        }

    def _train(self, request: dict[str, Any]) -> dict[str, Any]:
        text = str(request.get("study", ""))
        study = parse_study(text)
        study.require_trainable()
        record = self._registry.add_run(name=study.name, study=text, digest=study.digest)
        self._work.set()
        return {"run": record.run}

    def _events(self, request: dict[str, Any]) -> dict[str, Any]:
        run = self._registry.run(str(request.get("run", "")))
        events = self._registry.events_since(run.run, int(request.get("since", 0)))
        return {
            "state": run.state,
            "message": run.message,
            "events": [{"seq": e.seq, "kind": e.kind, **e.detail} for e in events],
            "held": [
                reason
                for model in self._registry.models()
                if model.run == run.run
                for reason in model.label.get("held", ())
            ],
        }


def run_summary(run: RunRecord) -> dict[str, Any]:
    """Return what people and machines are told about a run."""
    fields = ("run", "name", "state", "round", "rounds", "created", "started", "ended", "message")
    return {field: getattr(run, field) for field in fields} | {"holders": list(run.holders)}


class _RunStore:
    """What one run keeps, in the database."""

    def __init__(self, registry: Registry, run: str) -> None:
        self._registry, self._run = registry, run

    def save(self, number: int, state: bytes) -> None:
        self._registry.save_checkpoint(Checkpoint(run=self._run, round=number, state=state))

    def session(self, number: int) -> Session | None:
        return self._registry.session(self._run, number)

    def save_session(self, session: Session) -> None:
        self._registry.save_session(session)

    def collected(self, number: int) -> Collected | None:
        return self._registry.collected(self._run, number)

    def save_collected(self, collected: Collected) -> None:
        self._registry.save_collected(collected)
