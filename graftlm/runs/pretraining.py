"""The plain texts that a policy learns beside its answers, as a recipe names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Stack
from graftlm.data.batches import EncodedRow
from graftlm.data.prepare import PreparedData, load_instances, prepare
from graftlm.data.templates import ChatTemplate
from graftlm.data.trained_on import DataFile, describe_files
from graftlm.errors import UserError
from graftlm.recipe import AdapterRecipe
from graftlm.training.objective_settings import SHIPPED

STORIES = Path(__file__).parents[1] / "demo" / "data" / "stories" / "stories.jsonl"


@dataclass(frozen=True)
class Texts:
    """Texts as rows, with their account, and the files that they come from."""

    data: PreparedData
    files: tuple[DataFile, ...]

    @property
    def rows(self) -> tuple[EncodedRow, ...]:
        """What is learnt: all tokens of each text but the first."""
        return tuple(self.data.rows)


def pretraining_texts(
    adapter: AdapterRecipe, model: AdaptedModel, stack: Stack, template: ChatTemplate
) -> Texts | None:
    """The texts of an adapter's pretraining mix, cut at the context; None where it has none.

    Raises:
        UserError: they cannot be read, are no plain texts, or the base is no decoder.
    """
    settings = adapter.training.objective.pretraining
    if settings is None:
        return None
    if model.kind != "decoder":
        raise UserError(
            f"pretraining: plain texts are learnt by decoders, and this base is an {model.kind}",
            hint="Leave pretraining out.",
        )
    assert model.tokenizer is not None
    path = str(STORIES) if settings.data == SHIPPED else settings.data
    found = load_instances(path)
    for instance in found.items:
        if instance.messages[0].role != "text":
            raise UserError(
                f"pretraining: {instance.source}, row {instance.row} is a conversation, not a plain text (read as "
                f"{found.format})",
                hint='Plain texts are rows such as {"text": "…"}, or a .txt file.',
            )
    data = prepare(found, template, model.tokenizer, max_length=model.room(stack), max_dropped=1.0)
    return Texts(data, describe_files([path]))
