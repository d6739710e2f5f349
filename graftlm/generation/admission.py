"""Taking requests in: what is wrong with one is said here, before anything is computed for it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import as_stack
from graftlm.errors import UserError
from graftlm.generation.beams import Search, check_beams
from graftlm.generation.constraints import Constraint, constraints_for
from graftlm.generation.requests import Request, SamplingSettings, is_token
from graftlm.generation.rows import Row
from graftlm.generation.sampling import sample_seed
from graftlm.generation.shelf import Shelf
from graftlm.generation.text import TextStream


@dataclass(frozen=True)
class Admission:
    """What requests are checked against. ``cache_tokens``: how many tokens keys and values are kept for;
    ``max_rows``: how many rows are decoded together; ``start``: what the decoder of an encoder-decoder begins with.
    """

    model: AdaptedModel
    adapters: Shelf
    tokenizer: PreTrainedTokenizerBase | None
    cache_tokens: int
    max_rows: int
    start: tuple[int, ...] = ()

    def rows(self, request: Request) -> list[Row]:
        """Check a request that has an id, and make its rows, one for each sample or beam.

        Raises:
            UserError: an unknown adapter or one that writes no text, an empty prompt, one that fills the context, more
                than there is memory for, an id that is no token, or settings that are not for this engine.
        """
        stack = as_stack(request.adapters)
        self.adapters.check(request.adapters)
        head = self.adapters.head_of(stack)
        if head is not None:
            raise UserError(
                f"the adapter '{head}' has a head of its own: it predicts labels, and writes no text",
                hint="Ask it for labels: graftlm generate FILE --adapter FOLDER --out FILE",
            )
        sampling, tokenizer = request.sampling, self.tokenizer
        check_beams(sampling, self.max_rows)
        sampling.check_vocabulary(self.model.vocabulary)
        if sampling.stop and tokenizer is None:
            raise UserError("stop texts need a tokenizer: Engine(model, tokenizer)")
        if sampling.prompt_log_probs and self.start:
            raise UserError(
                f"prompt_log_probs: {self.model.name} is an encoder-decoder, which predicts no token of its prompt",
                hint="Leave them out; log-probabilities of the answer are always given.",
            )
        prompt, virtual, room = self._fitted(request)
        stop_ids = self._stop_ids(request)
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        assert request.id is not None
        rows = [
            Row(
                id=request.id,
                index=index,
                prompt=prompt,
                added=virtual,
                stack=stack,
                sampling=sampling,
                seed=sample_seed(seed, index),
                stop_ids=stop_ids,
                room=room,
                stream=TextStream(tokenizer, sampling.stop) if tokenizer is not None else None,
                start=self.start,
                constraint=self._constraint(sampling, stop_ids),
            )
            for index in range(max(sampling.n, sampling.num_beams))
        ]
        if sampling.num_beams > 1:
            Search(rows)
        return rows

    def _constraint(self, sampling: SamplingSettings, stop_ids: frozenset[int]) -> Constraint | None:
        """The state of one answer's constraint, at its beginning."""
        kind = sampling.constraint
        if kind is None:
            return None
        if self.tokenizer is None:
            raise UserError("constraints need a tokenizer: Engine(model, tokenizer)")
        constraints = constraints_for(self.tokenizer, self.model.vocabulary)
        return constraints.compile(kind, getattr(sampling, kind), stop_ids)

    def _fitted(self, request: Request) -> tuple[tuple[int, ...], int, int]:
        """The prompt with virtual tokens, how many were put in front, and how many tokens the context has left."""
        if not request.prompt_ids:
            raise UserError("the prompt is empty", hint="Give at least one token, such as the beginning of sequence.")
        wrong = next((token for token in request.prompt_ids if not is_token(token)), None)
        if wrong is not None:
            raise UserError(f"the prompt has {wrong!r} where a token's id should be, a whole number from 0 on")
        prompt = self.adapters.with_virtual_tokens(request.prompt_ids, request.adapters)
        length, virtual = len(prompt), len(prompt) - len(request.prompt_ids)
        beside = f" beside {virtual:,} virtual tokens of its adapters" if virtual else ""
        said = f"the prompt has {length - virtual:,} tokens{beside}"
        whole = self.model.context_length
        context = whole - self.adapters.prefix_length(as_stack(request.adapters))
        whose = "of the model" if context == whole else "that its prefix leaves"
        if self.start:  # an answer beside a source has a context of its own
            most, room = whole, context - len(self.start)
            problem = f"{said}, but the context of the model is {whole:,}"
        else:
            most, room = context - 1, context - length
            problem = f"{said}, but the context {whose} is {context:,}: there is no room for an answer"
        if length > most:
            raise UserError(problem, hint=f"Shorten it to at most {max(0, most - virtual):,} tokens.")
        if room < 1:
            raise UserError(f"the context {whose} is {context:,}: there is no room for an answer")
        beams = request.sampling.num_beams
        places = beams * (length + len(self.start) + min(request.sampling.max_new_tokens, room))
        if places > self.cache_tokens:
            each = f"for each of {beams} beams, " if beams > 1 else ""
            raise UserError(
                f"the request needs keys and values of {places:,} tokens ({each}{length:,} of its prompt and "
                f"{places // beams - length:,} new ones), but there is memory for {self.cache_tokens:,}",
                hint="Lower max_new_tokens, shorten the prompt, or raise cache_tokens.",
            )
        return prompt, virtual, room

    def _stop_ids(self, request: Request) -> frozenset[int]:
        """The tokens that end the answer: those of the request, or the tokenizer's end of sequence."""
        given = request.sampling.stop_ids
        if given is not None:
            return frozenset(given)
        end = self.tokenizer.eos_token_id if self.tokenizer is not None else None
        return frozenset((end,) if isinstance(end, int) else ())
