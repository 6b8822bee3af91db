"""``assay model request`` and ``assay model assemble``: a person scored across holders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from assay.privacy.terminal import Json, command, emit, note

__all__ = ["assemble", "request"]

BundleFile = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A file that ends in .bundle.")]


@command
def request(
    bundle: BundleFile,
    out: Annotated[Path, typer.Option("--out", help="A new directory for the request and its key.")],
    purpose: Annotated[str, typer.Option("--purpose", help="What the score is for; the bundle's purpose.")],
    context: Annotated[
        str | None, typer.Option(help="Where it is used; a context that the bundle declares.")
    ] = None,
    platform: Annotated[
        str | None, typer.Option(help="The platform it is used on: compliance counts only where it arose.")
    ] = None,
    valid_days: Annotated[int, typer.Option(help="How long holders may answer, and answers count.")] = 7,
    as_json: Json = False,
) -> None:
    """Ask holders for a person's points: a request to send them, and a key that stays here.

    The request proves nothing about the person. Each holder needs the person's own authorisation, and the
    fingerprint shown here, over another channel.

    Example: assay model request card.bundle --purpose consumer_credit --out asked
    """
    from assay.models.ask import make_request
    from assay.models.bundle import read_bundle
    from assay.privacy.pointsrequest import REQUEST_FILE

    made = make_request(
        read_bundle(bundle), out, purpose=purpose, context=context, platform=platform, valid_days=valid_days
    )
    file = out / REQUEST_FILE
    emit(
        {
            "request": made.id,
            "file": str(file),
            "fingerprint": made.fingerprint,
            "expires": made.expires,
            "purpose": made.purpose,
            "context": made.context,
        },
        as_json=as_json,
        text=f"Send {file} to each holder, and tell its operator the fingerprint {made.fingerprint}.\n"
        f"Whoever has {out / 'keys'} can read the answers.",
    )


@command
def assemble(
    bundle: BundleFile,
    statements: Annotated[
        list[Path], typer.Argument(metavar="STATEMENT...", help="What the holders sent back.")
    ],
    key: Annotated[Path, typer.Option("--key", help="The directory of the request.")],
    purpose: Annotated[str, typer.Option("--purpose", help="What the score is for; the request's purpose.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the result as JSON; only you can read the file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put a person's score together from the points that holders stated, and say what is missing.

    Example: assay model assemble card.bundle bank.points shop.points --key asked --purpose consumer_credit
    """
    from assay.models.assemble import assemble as put_together
    from assay.models.assemble import assembled_in_words
    from assay.models.bundle import read_bundle
    from assay.privacy.errors import BadInput
    from assay.privacy.files import PRIVATE_FILE, write_durably
    from assay.privacy.keys import canonical_json

    if output is not None and (output.exists() or not output.parent.is_dir()):
        raise BadInput("--output", value=str(output), allowed="a new file in an existing directory")
    result = put_together(read_bundle(bundle), statements, directory=key, purpose=purpose)
    if output is not None:
        write_durably(output, canonical_json(result) + b"\n", mode=PRIVATE_FILE)
        note(f"{output}: the result. It holds personal data.")
    emit(result, as_json=as_json, text=assembled_in_words(result))
