"""Loads the encoders of a collection's fields."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from api.cli.console import load_encoder
from api.settings import Settings
from embedserve.errors import IndexMismatchError, LoadError, NotFoundError

if TYPE_CHECKING:
    from embedserve import Encoder
    from indexing.collections.manifest import Manifest


def encoders_of(manifest: Manifest, settings: Settings, *, chosen: bool, names: Iterable[str]) -> list[Encoder]:
    """Return the encoders that made the vectors of fields.

    Args:
        manifest: Manifest of the collection.
        settings: Device, and the model if ``chosen``.
        chosen: Use ``settings.model`` instead of the recorded location of the encoder.
        names: Names of the fields; word fields and fields of imported vectors have no encoder.

    Raises:
        IndexMismatchError: The encoder has changed.
        LoadError, NotFoundError: The encoder cannot be loaded from its recorded location.
    """
    from embedserve import Encoder, EncoderSpec
    from indexing.collections.encoder_match import check_encoder

    fields = {f.fingerprint: f for f in (manifest.fields[name] for name in names) if f.fingerprint}
    if chosen and fields:
        encoder = load_encoder(settings.model, settings.device)
        check_encoder(manifest.name, manifest, encoder)
        fields.pop(encoder.fingerprint, None)
        encoders = [encoder]
    else:
        encoders = []
    for field in fields.values():
        spec = EncoderSpec.from_dict(field.spec)
        try:
            encoder = Encoder.load(spec, device=settings.device)
            check_encoder(manifest.name, manifest, encoder)
        except (LoadError, NotFoundError, IndexMismatchError) as error:
            message = f"{error.message} (collection {manifest.name!r} was built by {spec.backbone!r}; "
            raise type(error)(message + "if that encoder has moved, pass its folder with --model)") from None
        encoders.append(encoder)
    return encoders
