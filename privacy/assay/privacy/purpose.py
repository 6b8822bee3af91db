"""What a score may be used for. The rules are dated data (:mod:`assay.privacy.policypack`), not code.

Anything the pack does not allow is refused, and no setting turns that off. A pack is a reading of the law
for engineers, not legal advice; a newer one is added beside the others when the rules change.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection

from assay.privacy.errors import BadInput, Refused
from assay.privacy.packfile import DEFAULT, load_pack
from assay.privacy.policypack import PolicyPack, Protected, Refusal, words_of

__all__ = [
    "PACK",
    "PolicyPack",
    "Protected",
    "Refusal",
    "check_context",
    "check_input",
    "check_purpose",
    "check_use",
]

PACK = load_pack(DEFAULT)
"""The pack of every study that names no other."""


def check_purpose(purpose: object, pack: PolicyPack = PACK) -> str:
    """Return ``purpose`` if a study may have it.

    Edge cases: a list of several purposes is refused (D01); a name the pack does not know is refused
    with code ``"purpose"`` and the nearest allowed one.

    Raises:
        Refused: the purpose is not allowed.
        BadInput: it is not a word at all.
    """
    if isinstance(purpose, (list, tuple)) and len(purpose) > 1:
        raise pack.refusal("D01").error("more than one purpose")
    if not isinstance(purpose, str) or not purpose.strip():
        raise BadInput("purpose", value=purpose, allowed=f"one of {', '.join(pack.allowed)}")
    if purpose in pack.allowed:
        return purpose
    if (refusal := pack.named(purpose)) is not None:
        raise refusal.error(f"purpose {purpose!r}")
    raise _not_allowed(purpose, pack)


def check_context(context: object, pack: PolicyPack = PACK) -> str:
    """Return ``context`` if a study may declare it: any words, except the name of a refused use.

    Raises:
        Refused: the context is a refused use under another heading.
        BadInput: it is not a non-empty string.
    """
    if not isinstance(context, str) or not context.strip():
        raise BadInput("contexts", value=context, allowed="non-empty strings such as credit_card_application")
    phrase = "_".join(words_of(context))
    for refusal in pack.refusals:
        if phrase in refusal.phrases:
            raise refusal.error(f"context {context!r}")
    return context


def check_input(*names: str, pack: PolicyPack = PACK) -> None:
    """Refuse a model input that is named after a protected attribute.

    Names are looked at word by word (``usage`` is not ``age``). What hides behind a neutral name is not
    found; nothing here measures that.

    Args:
        names: the feature's name, its column and its label.
        pack: the rules.

    Raises:
        Refused: the code that the pack gives for it, D05.
    """
    for name in names:
        if (protected := pack.protects(name)) is not None:
            raise pack.refusal(protected.refusal).error(f"input {name!r}", protected.article)


def check_use(
    requested: object,
    declared: str,
    pack: PolicyPack = PACK,
    *,
    context: object = None,
    contexts: Collection[str] = (),
) -> str:
    """Return ``requested`` if a model made for ``declared`` may be used for it.

    Args:
        requested: the purpose that is asked for.
        declared: the model's purpose.
        pack: the rules.
        context: where the score is to be used; None: it is not said.
        contexts: the contexts that were declared for the model.

    Raises:
        Refused: it is another purpose (D03, or D08 between fraud and credit) or no allowed one; or a
            context that was not declared (D03) or is a refused use itself.
        BadInput: purpose or context is not a word at all.
    """
    purpose = check_purpose(requested, pack)
    if purpose != declared:
        crossed = "fraud_detection" in (purpose, declared)
        refusal = pack.refusal("D08" if crossed else "D03")
        raise refusal.error(f"purpose {purpose!r} for a model made for {declared!r}")
    if context is not None and check_context(context, pack) not in contexts:
        made = " or ".join(map(repr, contexts))
        raise pack.refusal("D03").error(f"context {context!r} for a model made for {made}")
    return purpose


def _not_allowed(purpose: str, pack: PolicyPack) -> Refused:
    nearest = difflib.get_close_matches(purpose, pack.allowed, n=1, cutoff=0.0)[0]
    return Refused(
        f"purpose {purpose!r} is refused: only {', '.join(pack.allowed)} are allowed;"
        f" the nearest is {nearest!r}",
        code="purpose",
        subject=f"purpose {purpose!r}",
        pack=pack.name,
    )
