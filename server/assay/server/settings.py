"""The coordinator's settings, ``federation.toml``."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, fields
from pathlib import Path

from assay.privacy.errors import BadInput
from assay.privacy.files import read_toml
from assay.privacy.names import check_federation_name, check_host, check_port, exact_keys, join_address

__all__ = ["FederationSettings"]

_TEMPLATE = """\
# The federation. Unknown keys are refused. Take changes up with: assay server serve DIR

[federation]
name = "{name}"
# Where holders connect. Join files carry it; after a change, admit every holder's request once more
# and send the new join files.
host = "{host}"
port = {port}
# The address of this machine to listen on. "0.0.0.0" is all of them, which is what a host name needs
# that other machines resolve to a router or a container.
listen = "{listen}"
# How long a round waits for the holders before it goes on without those that are missing.
round_timeout_s = {round_timeout_s}
# A run starts with at least this many holders; under trust "distributed" with at least 3, or more where the
# study tolerates several. The minimum keeps a model from showing one institution's business.
minimum_holders = {minimum_holders}
"""


@dataclass(frozen=True, kw_only=True)
class FederationSettings:
    """What the operator may change.

    Attributes:
        name: of the federation, for people.
        host: where holders connect.
        port: likewise, 1..65535.
        listen: IP address to listen on.
        round_timeout_s: 1..86400.
        minimum_holders: 1..1000.

    Raises:
        BadInput: a setting is outside its range.
    """

    name: str
    host: str
    port: int
    listen: str
    round_timeout_s: int = 600
    minimum_holders: int = 2

    def __post_init__(self) -> None:
        check_federation_name(self.name)
        check_host(self.host)
        check_port(self.port)
        _check_listen(self.listen)
        _check_integer("round_timeout_s", self.round_timeout_s, 86400)
        _check_integer("minimum_holders", self.minimum_holders, 1000)

    @property
    def address(self) -> str:
        """``host:port``, as holders are told."""
        return join_address(self.host, self.port)

    @classmethod
    def default(cls, name: str, host: str, port: int) -> FederationSettings:
        """Return the settings of a new federation; an IP address is listened on itself."""
        check_host(host)
        listen = "127.0.0.1" if host == "localhost" else host if _is_address(host) else "0.0.0.0"  # noqa: S104
        return cls(name=name, host=host, port=port, listen=listen)

    @classmethod
    def load(cls, path: Path) -> FederationSettings:
        """Read ``federation.toml``.

        Raises:
            BadInput: it is missing, not TOML, a key is unknown or missing, or a setting out of range.
        """
        document = exact_keys(read_toml(path), ["federation"], where=str(path))
        wanted = [item.name for item in fields(cls)]
        table = exact_keys(document["federation"], wanted, where=str(path), section="federation")
        try:
            return cls(**table)
        except BadInput as error:
            raise BadInput(
                error.setting, value=error.value, allowed=error.allowed, remedy=error.remedy, where=path
            ) from None

    def to_bytes(self) -> bytes:
        """Return the content of ``federation.toml``, with a comment on every setting."""
        return _TEMPLATE.format(**vars(self)).encode("ascii")


def _is_address(text: object) -> bool:
    try:
        ipaddress.ip_address(text if isinstance(text, str) else "")
    except ValueError:
        return False
    return True


def _check_listen(value: object) -> None:
    if not _is_address(value):
        raise BadInput("listen", value=value, allowed="an IP address of this machine, or 0.0.0.0")


def _check_integer(setting: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise BadInput(setting, value=value, allowed=f"1..{most}")
