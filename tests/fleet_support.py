"""Certificates, holder daemons in processes of their own, and raw signed requests for the fleet tests.

Run as a script it is one holder daemon: ``python fleet_support.py CONFIG.json``.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import http.client
import ipaddress
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


@dataclass
class Party:
    name: str
    key: ec.EllipticCurvePrivateKey
    key_file: Path
    certificate_file: Path

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


class Pki:
    """One certificate authority and the parties it certified, as files in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        builder = self._builder(self.subject, self.key.public_key(), -DAY, 2 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.ca = directory / "ca.pem"
        certificate = builder.sign(self.key, hashes.SHA384())
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        self.server = self.issue("server", usage=ExtendedKeyUsageOID.SERVER_AUTH, names=names)

    def _builder(self, subject, key, first, last) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + first)
            .not_valid_after(now + last)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )

    def issue(self, name, *, usage=ExtendedKeyUsageOID.CLIENT_AUTH, names=(), first=-DAY, last=DAY) -> Party:
        key = ec.generate_private_key(ec.SECP384R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key.public_key(), first, last)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        party = Party(name, key, self.directory / f"{name}.key", self.directory / f"{name}.pem")
        certificate = builder.sign(self.key, hashes.SHA384())
        party.certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        party.key_file.write_bytes(pem)
        party.key_file.chmod(0o600)
        return party

    def client_context(self, party: Party | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=str(self.ca))
        if party is not None:
            context.load_cert_chain(str(party.certificate_file), str(party.key_file))
        return context


def signed_headers(party: Party, at: datetime.datetime | None = None) -> dict[str, str]:
    """Flower's node authentication headers of ``party``."""
    stamp = (at or datetime.datetime.now(datetime.UTC)).isoformat()
    signature = party.key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "content-type": "application/protobuf",
        "flwr-public-key": base64.b64encode(party.public_key).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": base64.b64encode(signature).decode(),
    }


def post(pki, tls_party, port, path, body=b"", headers=None, *, method="POST", timeout=30.0):
    """One request on a connection of its own; returns ``(status, body)``."""
    connection = http.client.HTTPSConnection(
        "127.0.0.1", port, context=pki.client_context(tls_party), timeout=timeout
    )
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()


@dataclass
class Daemon:
    """A holder daemon in its own process."""

    config: Path
    log: Path
    state: Path
    process: subprocess.Popen | None = None

    def start(self) -> Daemon:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(self.config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HTTPS_PROXY": "http://127.0.0.1:9"},
            )
        return self

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def terminate(self, timeout: float = 10.0) -> float:
        """Send SIGTERM and return the seconds until the process has gone."""
        begin = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout)
        return time.monotonic() - begin

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def calls(self) -> int:
        """How often the app was asked."""
        path = self.state / "calls"
        return path.stat().st_size if path.exists() else 0


def make_daemon(directory: Path, pki: Pki, party: Party, address: str, **extra) -> Daemon:
    state = directory / party.name
    state.mkdir(parents=True, exist_ok=True)
    config = state / "config.json"
    settings = {
        "address": address,
        "ca": str(pki.ca),
        "certificate": str(party.certificate_file),
        "key": str(party.key_file),
        "state": str(state),
    }
    config.write_text(json.dumps(settings | extra))
    return Daemon(config, state / "log", state)


def wait_for(condition, timeout: float = 20.0):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise TimeoutError(condition)


def make_app(state: Path):
    """An app whose frames say what to do; every call adds a byte to the file ``calls``."""
    from flwr.app import ConfigRecord, Message, RecordDict

    def app(message, context):
        with (state / "calls").open("ab") as file:
            file.write(b".")
        word, _, rest = bytes(message.content["assay"]["frame"]).partition(b":")
        if word == b"sleep":
            time.sleep(float(rest))
        if word == b"fail":
            raise ValueError("a record says 4711")
        if word == b"garbage":
            return Message(RecordDict({"assay": ConfigRecord({"frame": 7})}), reply_to=message)
        if word == b"other":
            return Message(RecordDict({"x": ConfigRecord({"y": b"z"})}), reply_to=message)
        reply = b"answer:" + rest + (b"" if word != b"once" else os.urandom(8))
        return Message(RecordDict({"assay": ConfigRecord({"frame": reply})}), reply_to=message)

    return app


def main() -> None:
    from assay.client.fleet import FleetLink, serve

    settings = json.loads(Path(sys.argv[1]).read_text())
    state = Path(settings["state"])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    link = FleetLink(
        address=settings["address"],
        ca=Path(settings["ca"]),
        certificate=Path(settings["certificate"]),
        key=Path(settings["key"]),
    )
    app = make_app(state)
    if crash := settings.get("crash"):
        _crash_at(crash)
    if "beat" in settings:
        from assay.client import session

        session.BEAT_EVERY_S = settings["beat"]

    def log(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    serve(app, link=link, journal_dir=state / "journal", stop=stop, log=log)


def _crash_at(point: str) -> None:
    """Kill this process the way SIGKILL does, right before or after one step of the daemon."""
    from assay.client import fleet

    when, _, name = point.partition("-")
    original = getattr(fleet._Daemon, name)

    def crashing(*arguments):
        if when == "after":
            original(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(fleet._Daemon, name, crashing)


if __name__ == "__main__":
    main()
