"""A coordinator's directory: the federation's keys, settings and members.

federation.toml        settings
assay.sqlite           roster, runs, registry
keys/signing.key       Ed25519: is the federation; signs join files, roster and messages
keys/ca.key, ca.pem    certificate authority, pinned by every holder
keys/server.key, .pem  TLS of the coordinator, renewed when serving starts
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from cryptography.hazmat.primitives.asymmetric import ec

from assay.privacy.enrolment import Join, Request
from assay.privacy.errors import BadInput
from assay.privacy.files import PRIVATE_FILE, require_private, write_durably
from assay.privacy.homes import new_home
from assay.privacy.keys import Identity
from assay.privacy.names import federation_id
from assay.privacy.transport import load_certificate, load_transport_key
from assay.server.certificates import Authority, days_left, serves_host
from assay.server.records import Member
from assay.server.registry import Registry
from assay.server.roster import Roster
from assay.server.settings import FederationSettings

__all__ = ["Federation"]

SETTINGS_FILE = "federation.toml"
DATABASE = "assay.sqlite"
SIGNING_KEY = "keys/signing.key"
CA_KEY, CA_CERTIFICATE = "keys/ca.key", "keys/ca.pem"
SERVER_KEY, SERVER_CERTIFICATE = "keys/server.key", "keys/server.pem"
# Renewed when fewer days are left. A holder's certificate is renewed by admitting its request again.
SERVER_RENEWAL_DAYS = 30
CLIENT_RENEWAL_DAYS = 90


class Federation:
    """An open coordinator's directory.

    Attributes:
        directory: where it is.
        settings: what ``federation.toml`` says.
        identity: the federation's signing key.
        registry: its database.
        roster: its signed list of holders.
    """

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open a directory that :meth:`init` made.

        Raises:
            BadInput: it was not made by it, a setting is wrong, or others could read directory or keys.
            Tampered: the database is damaged.
        """
        settings_file = directory / SETTINGS_FILE
        if not settings_file.exists():
            raise BadInput(
                "directory",
                value=str(directory),
                allowed="a coordinator's directory",
                remedy=f"Run: assay server init {directory} --name NAME",
            )
        if not (directory / DATABASE).exists():
            # A new, empty one would forget every revocation.
            raise BadInput(
                DATABASE, where=directory, allowed="the database", remedy="Restore it from a backup"
            )
        for name in ("", "keys", CA_KEY, SERVER_KEY):
            require_private(directory / name)
        self.directory, self._clock = directory, clock
        self.settings = FederationSettings.load(settings_file)
        self.identity = Identity.load(directory / SIGNING_KEY)
        self.registry = Registry(directory / DATABASE, clock=clock)
        self.roster = Roster(self.registry, self.identity, clock=clock)

    @classmethod
    def init(
        cls, directory: Path, name: str, host: str, port: int, *, clock: Callable[[], float] = time.time
    ) -> Federation:
        """Make a coordinator's directory with new keys, and open it.

        Args:
            directory: missing or empty; nothing in it is ever overwritten.
            name: of the federation, for people.
            host: name or address that the holders connect to.
            port: likewise, 1..65535.
            clock: seconds since 1970.

        Raises:
            BadInput: an argument is not allowed, or the directory is in use.
        """
        settings = FederationSettings.default(name, host, port)
        with new_home(directory, remedy="Choose another directory; a federation keeps the keys it has"):
            Identity.generate().save(directory / SIGNING_KEY)
            authority = Authority.create(directory / CA_KEY, directory / CA_CERTIFICATE, name, clock())
            authority.certify_server(directory / SERVER_KEY, directory / SERVER_CERTIFICATE, host, clock())
            Registry(directory / DATABASE, clock=clock).close()
            write_durably(directory / SETTINGS_FILE, settings.to_bytes(), mode=PRIVATE_FILE)
        return cls(directory, clock=clock)

    def close(self) -> None:
        """Close the database; a second call does nothing."""
        self.registry.close()

    def __enter__(self) -> Federation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def id(self) -> str:
        """The federation's name on the wire, 64 hexadecimal digits."""
        return federation_id(self.identity.public)

    @property
    def fingerprint(self) -> str:
        """What the operator reads out to a holder that is about to join."""
        return self.identity.fingerprint

    @property
    def ca_certificate(self) -> Path:
        """The root certificate that client certificates must come from."""
        return self.directory / CA_CERTIFICATE

    @property
    def server_key(self) -> Path:
        """The TLS key of the coordinator."""
        return self.directory / SERVER_KEY

    @property
    def server_certificate(self) -> Path:
        """The TLS certificate of the coordinator."""
        return self.directory / SERVER_CERTIFICATE

    def admit(self, request: Request) -> Join:
        """Admit the holder of a verified request; the same request again gives the same answer.

        A certificate that ends within 90 days is renewed then.

        Raises:
            BadInput: name or key belong to another holder.
            Refused: the key was revoked.
            Tampered: the roster is not what this federation signed.
        """
        authority = self._authority()
        member = self.roster.admit(
            request,
            certify=lambda: authority.certify_client(request, self._clock()),
            keep=lambda pem: days_left(pem, self._clock(), where="roster") >= CLIENT_RENEWAL_DAYS,
        )
        return Join.make(
            request,
            member.certificate_pem,
            federation=self.settings.name,
            address=self.settings.address,
            ca_pem=authority.certificate_pem,
            identity=self.identity,
        )

    def revoke(self, name: str) -> Member:
        """End a holder's membership for good.

        Raises:
            BadInput: no member has that name.
            Tampered: the roster is not what this federation signed.
        """
        return self.roster.revoke(name)

    def ensure_server_certificate(self) -> bool:
        """Renew the server's key and certificate where they end soon, name another host or do not fit.

        Returns:
            Whether they are new, so that a running server has to load them.
        """
        if self._server_certificate_serves():
            return False
        self._authority().certify_server(
            self.server_key, self.server_certificate, self.settings.host, self._clock()
        )
        return True

    def _authority(self) -> Authority:
        return Authority.load(self.directory / CA_KEY, self.ca_certificate)

    def _server_certificate_serves(self) -> bool:
        where = str(self.server_certificate)
        try:
            pem = self.server_certificate.read_text(encoding="ascii")
            certified = load_certificate(pem, setting="certificate", where=where).public_key()
        except (FileNotFoundError, UnicodeDecodeError, BadInput):
            return False
        key: ec.EllipticCurvePublicKey = load_transport_key(self.server_key).public_key()
        # A crash between the two files leaves a new key beside an old certificate.
        fresh = days_left(pem, self._clock(), where=where) >= SERVER_RENEWAL_DAYS
        return certified == key and fresh and serves_host(pem, self.settings.host, where=where)
