"""The model card of a trained encoder: architecture, training data, hyperparameters and scores."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embedserve.encoder import Encoder
from embedserve.heads import ZOO
from embedserve.spec import EncoderSpec
from embedserve.strategies import is_trained
from embedserve.training.hyperparameters import TrainSettings


def write_card(
    folder: Path,
    encoder: Encoder,
    settings: TrainSettings,
    sources: Sequence[str],
    count: int,
    before: float | None,
    after: float | None,
    steps: int,
    kept: int,
) -> None:
    """Write ``README.md`` to ``folder``; the last arguments are those of `embedserve.training.train.Trained`.

    ``count`` is the number of pairs, or of texts for a fitted strategy.
    """
    spec = encoder.spec
    options = ", ".join(f"{name} {value}" for name, value in spec.options.items()) or "none"
    quality = "not evaluated" if before is None else f"{before:.4f} before training, {after:.4f} after"
    names = ", ".join(Path(source).name for source in sources)
    ships = folder.parent == ZOO
    model = f'EncoderSpec("{spec.strategy}")' if ships else f'"{folder.name}"'
    trained = {name: value for name, value in asdict(settings).items() if _is_listed(name, value, settings)}
    lines = [
        f"# {spec.strategy} on {Path(spec.backbone).name}",
        "",
        f"A text encoder: `{spec.strategy}` over the decoder `{Path(spec.backbone).name}`, "
        f"{encoder.dim} dimensions, {' and '.join(encoder.outputs)} vectors.",
        "",
        "```python",
        f"from embedserve import Encoder{', EncoderSpec' if ships else ''}",
        "",
        f'vectors = Encoder.load({model}).encode(["a text"])',
        "```",
        "",
        f"- fingerprint: `{encoder.fingerprint}`",
        f"- options: {options}",
        f"- what was {'trained' if steps else 'fitted'}: {_trained_weights(spec, settings)}",
        f"- data: {count:,} {'pairs' if steps else 'texts'} from {names or 'memory'}",
        f"- updates: {steps:,}{f', of which the first {kept:,} were kept' if kept < steps else ''}",
        f"- MRR@10 on held-out pairs: {quality}",
        *([f"- settings: {', '.join(f'{name} {value}' for name, value in trained.items())}"] if steps else []),
        f"- written {datetime.datetime.now(tz=datetime.UTC).date()}",
        "",
        "The licences of the backbone and of the training data apply.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _trained_weights(spec: EncoderSpec, settings: TrainSettings) -> str:
    """Describe the weights that were trained."""
    if settings.tune == "all":
        return "all weights"
    if settings.tune == "head":
        return "the strategy's own weights, over the frozen backbone"
    head = "the strategy's own weights and " if is_trained(spec.strategy, spec.options) else ""
    return f"{head}low-rank adapters of the backbone"


def _is_listed(name: str, value: Any, settings: TrainSettings) -> bool:
    """Return whether the card lists a setting: it is set, had an effect, and is not shown elsewhere."""
    if name == "lora_rank" and settings.tune != "lora":
        return False
    return name not in ("tune", "options") and value not in (None, (), 0, False)
