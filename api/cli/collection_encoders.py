"""The encoders of a collection, loaded as its fields describe them."""

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
    """Return the encoders that made the vectors of fields, once they are found fit.

    Args:
        manifest: Of the collection.
        settings: Where to compute, and the model where one was chosen.
        chosen: Whether ``settings.model`` is another copy of the encoder.
        names: Of the fields; those of words, and those whose vectors were handed over, need none.

    Raises:
        IndexMismatchError: The encoder is another one now.
        LoadError, NotFoundError: It is not where it was.
    """
    from embedserve import Encoder, EncoderSpec
    from indexing.collections.encoder_match import check_encoder

    fields = {f.fingerprint: f for f in (manifest.fields[name] for name in names) if f.fingerprint}
    if chosen and fields:
        encoder = load_encoder(settings.model, settings.device)
        check_encoder(manifest.name, manifest, encoder)
        fields.pop(encoder.fingerprint, None)
        loaded = [encoder]
    else:
        loaded = []
    for field in fields.values():
        spec = EncoderSpec.from_dict(field.spec)
        try:
            encoder = Encoder.load(spec, device=settings.device)
            check_encoder(manifest.name, manifest, encoder)
        except (LoadError, NotFoundError, IndexMismatchError) as error:
            message = f"{error.message} (collection {manifest.name!r} was built by {spec.backbone!r}; "
            raise type(error)(message + "if that encoder is elsewhere now, give its folder by --model)") from None
        loaded.append(encoder)
    return loaded
