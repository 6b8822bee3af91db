"""What a holder agrees to take part in: decided here, at the holder, before anything is spent.

The answer that leaves is one word (``assay.privacy.messages.DECLINE_CODES``); the sentence beside it stays
at the holder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from assay.client.records import Records
from assay.models.label import epsilon_of_share, privacy_target
from assay.models.schema import COMPONENTS, MAX_DELTA, Study
from assay.privacy.errors import BadInput, Refused
from assay.privacy.keys import fingerprint, same_fingerprint
from assay.privacy.ledger import Limits
from assay.privacy.names import check_holder_name
from assay.privacy.packfile import pack_names
from assay.privacy.purpose import PACK, check_purpose
from assay.privacy.secagg import MAX_HOLDERS, MIN_HOLDERS

__all__ = [
    "Policy",
    "admit",
    "admit_use",
    "require_circle",
    "require_count",
    "require_persons",
    "require_same_person",
]

MAX_EPSILON = 1000  # what the ledger can account for
TRUST = ("distributed", "local")
MODELS = ("additive", "neural")
_FINGERPRINT = re.compile(r"[0-9A-F]{32}")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The holder's own limits. A study may ask for less, never for more.

    Attributes:
        purposes: allowed purposes, each one that the default policy pack allows; at least one.
        packs: policy packs that a study may be checked against; at least one. Which rules bind this holder is
            not the coordinator's choice.
        components: components that may be used, each of ``assay.models.study.COMPONENTS``; at least one.
        epsilon_per_run: most privacy loss of one person in one run; above 0, at most 1000.
        epsilon_per_study: the same over all runs of one study; not below ``epsilon_per_run``.
        epsilon_per_year: the same over all studies of 365 days; not below ``epsilon_per_study``.
        delta: above 0, at most 1e-6; all three epsilons are stated at this delta.
        minimum_persons: fewer persons than this in the records, and no run takes place; at least 1.
        new_studies_per_day: most different studies that are tried on the records within 24 hours; at least 1.
        trust: allowed modes, each ``"distributed"`` or ``"local"``; at least one.
        minimum_holders: under ``"distributed"``, a sum of fewer holders than this is not taken part in; 3 to
            1000.
        epsilon_if_aggregation_fails: under ``"distributed"``, most privacy loss of one person in one run if
            every mask fell and only this holder's own share of the noise were left; above 0, or None for no
            limit. The more holders there are said to be, the smaller that share.
        models: kinds of model that are trained, each ``"additive"`` or ``"neural"``; at least one. A network
            is only ever compared with a scorecard, in a simulation.
        peers: fingerprints of the other holders by name. Empty: whom the coordinator names. Otherwise
            nobody else is summed with, whatever the coordinator says.
    """

    purposes: tuple[str, ...]
    components: tuple[str, ...]
    epsilon_per_run: float
    epsilon_per_study: float
    epsilon_per_year: float
    delta: float
    minimum_persons: int
    new_studies_per_day: int = 8
    trust: tuple[str, ...] = TRUST
    minimum_holders: int = MIN_HOLDERS
    epsilon_if_aggregation_fails: float | None = 25.0
    models: tuple[str, ...] = ("additive",)
    peers: Mapping[str, str] = field(default_factory=dict)
    packs: tuple[str, ...] = (PACK.name,)

    def __post_init__(self) -> None:
        _require_words("purposes", self.purposes)
        for purpose in self.purposes:
            check_purpose(purpose)
        _require_words("packs", self.packs)
        for pack in self.packs:
            if pack not in pack_names():
                raise BadInput("packs", value=pack, allowed=f"any of {', '.join(pack_names())}")
        for setting, known in (("components", COMPONENTS), ("trust", TRUST), ("models", MODELS)):
            _require_words(setting, getattr(self, setting))
            for word in getattr(self, setting):
                if word not in known:
                    raise BadInput(setting, value=word, allowed=f"any of {', '.join(known)}")
        self._check_epsilons()
        if not _is_number(self.delta) or not 0 < self.delta <= MAX_DELTA:
            raise BadInput("delta", value=self.delta, allowed=f"above 0, at most {MAX_DELTA:g}")
        for name in ("minimum_persons", "new_studies_per_day"):
            if not _is_whole(value := getattr(self, name)) or not value >= 1:
                raise BadInput(name, value=value, allowed="a whole number, 1 or more")
        if not _is_whole(self.minimum_holders) or not MIN_HOLDERS <= self.minimum_holders <= MAX_HOLDERS:
            allowed = f"a whole number, {MIN_HOLDERS} to {MAX_HOLDERS}: a sum of fewer hides nobody"
            raise BadInput("minimum_holders", value=self.minimum_holders, allowed=allowed)
        alone = self.epsilon_if_aggregation_fails
        if alone is not None and (not _is_number(alone) or not 0 < alone <= MAX_EPSILON):
            allowed = f"a number above 0, at most {MAX_EPSILON}"
            raise BadInput("epsilon_if_aggregation_fails", value=alone, allowed=allowed)
        _check_peers(self.peers)

    @property
    def limits(self) -> Limits:
        """The caps that the ledger enforces over runs and studies."""
        return Limits(
            epsilon_per_study=self.epsilon_per_study,
            epsilon_per_year=self.epsilon_per_year,
            delta=self.delta,
        )

    def _check_epsilons(self) -> None:
        floor, floor_name = 0.0, ""
        for name in ("epsilon_per_run", "epsilon_per_study", "epsilon_per_year"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 < value <= MAX_EPSILON:
                raise BadInput(name, value=value, allowed=f"a number above 0, at most {MAX_EPSILON}")
            if not value >= floor:
                raise BadInput(name, value=value, allowed=f"at least {floor_name}, which is {floor:g}")
            floor, floor_name = value, name


def admit(study: Study, policy: Policy) -> None:
    """Refuse a study that this holder does not agree to. Reads no records and spends nothing.

    Budgets over several runs are the ledger's to check; this looks at the one run that is offered.

    Raises:
        Refused: with the code of the first limit that is passed.
    """
    admit_use(study, policy)
    for feature in study.features:
        if feature.component not in policy.components:
            raise Refused(
                f"feature {feature.name!r} is of component {feature.component!r}, which is not allowed here; "
                f"allowed: {', '.join(policy.components)}. {_HOW}",
                code="components",
            )
    _admit_privacy(study, policy)
    if study.training.model not in policy.models:
        study.require_trainable()  # refuses, with what to change


def admit_use(study: Study, policy: Policy) -> None:
    """Refuse what this holder does not let its records be used for.

    Raises:
        Refused: the study's pack or purpose is not among those of ``policy`` (code ``"purpose"``).
    """
    if study.pack not in policy.packs:
        raise Refused(
            f"pack {study.pack!r} is not allowed here; allowed: {', '.join(policy.packs)}. {_HOW}",
            code="purpose",
            subject=f"pack {study.pack!r}",
            pack=study.pack,
        )
    if study.purpose not in policy.purposes:
        raise Refused(
            f"purpose {study.purpose!r} is not allowed here; allowed: {', '.join(policy.purposes)}. {_HOW}",
            code="purpose",
            subject=f"purpose {study.purpose!r}",
            pack=study.pack,
        )


def require_circle(
    study: Study, policy: Policy, keys: Mapping[str, bytes], *, name: str, public: bytes
) -> None:
    """Refuse to be summed with holders that this one does not agree to.

    Args:
        study: the accepted study.
        policy: the holder's own rules.
        keys: Ed25519 key (32 bytes) of everybody in the sum by name, this holder included.
        name: this holder's name.
        public: its key.

    Raises:
        Refused: code ``"holders"``: too few, this holder is not among them under its own key, one key has
            several names, or ``policy.peers`` does not hold somebody.
    """
    if keys.get(name) != public:
        raise Refused(
            f"the holders to be summed do not hold {name!r} with its own key; nothing is sent", code="holders"
        )
    require_count(study, policy, len(keys))
    if len(set(keys.values())) < len(keys):
        raise Refused("one key stands under several names; every holder counts once", code="holders")
    if policy.peers:
        _require_pinned(policy.peers, {peer: key for peer, key in keys.items() if peer != name})


def _require_pinned(pins: Mapping[str, str], keys: Mapping[str, bytes]) -> None:
    for peer in sorted(keys):
        pinned = pins.get(peer)
        if pinned is None or not same_fingerprint(pinned, fingerprint(keys[peer])):
            raise Refused(
                f"holder {peer!r} with fingerprint {fingerprint(keys[peer])} is not in policy.peers. Compare"
                " it with what its operator reads out, and add it to client.toml if it is the same",
                code="holders",
            )


def require_count(study: Study, policy: Policy, holders: int) -> None:
    """Refuse a sum of too few, or of so many that this holder's own share of the noise is too small.

    Raises:
        Refused: code ``"holders"``.
    """
    study.require_holders(holders)
    most, alone = policy.epsilon_if_aggregation_fails, 0.0
    if most is not None:
        alone = epsilon_of_share(privacy_target(study), holders - study.privacy.tolerated)
    if most is not None and not alone <= most:
        raise Refused(
            f"in a sum of {holders} holders this one's own share of the noise would keep no more than epsilon"
            f" {alone:.3g}; allowed: {most:g} (policy.epsilon_if_aggregation_fails). Raise it if the other"
            " holders are known to be real, and pin them in [policy.peers]",
            code="holders",
        )
    if not holders >= policy.minimum_holders:
        raise Refused(
            f"{holders} holders would be summed; allowed: at least {policy.minimum_holders}"
            " (policy.minimum_holders)",
            code="holders",
        )


def _admit_privacy(study: Study, policy: Policy) -> None:
    privacy = study.privacy
    if privacy.trust not in policy.trust:
        raise Refused(
            f"privacy.trust {privacy.trust!r} is not allowed here; allowed: {', '.join(policy.trust)}"
            f" (policy.trust). {_HOW}",
            code="trust",
        )
    # Written so that a NaN is refused.
    if not privacy.epsilon <= policy.epsilon_per_run:
        raise Refused(
            f"privacy.epsilon {privacy.epsilon:g} is more than this holder gives in one run; "
            f"allowed: at most {policy.epsilon_per_run:g} (policy.epsilon_per_run)",
            code="epsilon",
        )
    if not privacy.delta <= policy.delta:
        raise Refused(
            f"privacy.delta {privacy.delta:g} is more than this holder gives; "
            f"allowed: at most {policy.delta:g} (policy.delta)",
            code="delta",
        )


def require_same_person(study: Study, person: str | None) -> None:
    """Refuse a study that counts persons otherwise than the holder says they are to be counted.

    Privacy is promised to a person. Who that is must not be the coordinator's choice: a study without the
    person column would treat every row of a person as somebody else.

    Args:
        study: the offered study.
        person: the holder's column that names the person; None: every row is a different person.

    Raises:
        Refused: code ``"person"``.
    """
    if study.person != person:
        wanted = f'[person] with column = "{person}"' if person else "no [person] section"
        raise Refused(
            f"the study's persons are {study.person or 'its rows'}; allowed: {wanted}, as"
            " data.person_column or data.one_row_per_person in client.toml says",
            code="person",
        )


def require_persons(records: Records, policy: Policy) -> None:
    """Refuse to take part with fewer persons than the policy asks for.

    The message holds the limit and not the holder's own number, which is computed from records.

    Raises:
        Refused: code ``"data"``.
    """
    if not records.persons_count >= policy.minimum_persons:
        raise Refused(
            "the records hold fewer persons than policy.minimum_persons; "
            f"allowed: at least {policy.minimum_persons}. Add records or lower the limit in client.toml",
            code="data",
        )


_HOW = "To allow it, add it to [policy] in client.toml"


def _require_words(setting: str, values: object) -> None:
    if not isinstance(values, tuple) or not values or not all(isinstance(value, str) for value in values):
        raise BadInput(setting, value=values, allowed="a list of words, at least one")
    if len(set(values)) < len(values):
        raise BadInput(setting, value=list(values), allowed="each word once")


def _check_peers(peers: object) -> None:
    if not isinstance(peers, Mapping):
        raise BadInput("peers", value=peers, allowed='a table of lines NAME = "FINGERPRINT"')
    for peer, pinned in peers.items():
        try:
            check_holder_name(peer)
        except BadInput as error:
            raise BadInput(f"peers.{peer}", allowed=f"a holder's name: {error.allowed}") from None
        typed = pinned.replace("-", "").replace(" ", "").upper() if isinstance(pinned, str) else ""
        if not _FINGERPRINT.fullmatch(typed):
            allowed = "a fingerprint, eight groups of four hexadecimal digits"
            raise BadInput(f"peers.{peer}", value=pinned, allowed=allowed, remedy="Ask the holder's operator")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
