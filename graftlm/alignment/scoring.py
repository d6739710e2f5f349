"""Scoring answers by training's own forward: policy, reference and values of the same tokens, in shared micro-batches.

The log-probabilities that a policy is trained by are these, not the engine's, so that its ratio to itself is 1 at
first. By how much the engine's differ is measured, and an error above a bound: answers that are drawn from another
distribution than the trained one would teach something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Routing, RowAdapters, as_stack
from graftlm.alignment.rollouts import Rollout, Rollouts
from graftlm.errors import UserError
from graftlm.objectives.estimates import entropy
from graftlm.objectives.log_probs import Score, chunk_rows, token_log_probs
from graftlm.training.forward import (
    MicroBatch,
    RoutedRow,
    build_micro_batch,
    heated,
    learnt_states,
    plan_micro_batches,
)
from graftlm.training.virtual_rows import with_virtual_tokens

#: By how much a token's log-probability may differ between rollout and scoring, by the precision of the base. In half
#: precision the two passes round differently in every layer.
BOUNDS = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.2}


@dataclass(frozen=True)
class Roles:
    """Who else looks at the answers of a policy, as adapters on the same base.

    ``reference``: an adapter, a stack, or () for the bare base; None where there is none. ``value``: the adapter, or
    stack, whose head gives one value a token.
    """

    reference: RowAdapters = None
    value: RowAdapters = None


@dataclass(frozen=True)
class Deviation:
    """How far the rollout's log-probabilities (as drawn) are from those of scoring: of ``tokens`` of one policy.

    ``where``: the answer with the largest.
    """

    policy: str
    largest: float
    mean: float
    tokens: int
    where: str

    def check(self, bound: float) -> None:
        """Stop where the answers are not those of the policy that is scored.

        Raises:
            UserError: the largest deviation is above ``bound``, or no number.
        """
        if self.largest <= bound:
            return
        raise UserError(
            f"{self.where}: the log-probability of a token differs by {self.largest:.3g} between rollout and scoring "
            f"(mean {self.mean:.3g}); allowed: {bound:g}",
            hint="Score answers before the adapter's next step, with the same temperature and templates, and no "
            "dropout. If all that holds, it is rounding in half precision: load the base in float32, or raise bound.",
        )


@dataclass(frozen=True)
class Scores:
    """What the scoring pass says of each answer, token by token; all (tokens of the answer,), float32 or float64.

    ``log_probs`` and ``reference`` are at the temperature of sampling. ``reference`` and ``values`` are None for
    policies that have no such role.
    """

    log_probs: tuple[torch.Tensor, ...]
    entropy: tuple[torch.Tensor, ...]
    reference: tuple[torch.Tensor | None, ...]
    values: tuple[torch.Tensor | None, ...]
    deviations: Mapping[str, Deviation]
    micro_batches: int


def scores_at(scores: Scores, places: Sequence[int]) -> Scores:
    """Those of some answers, by their places."""
    return replace(
        scores,
        log_probs=tuple(scores.log_probs[place] for place in places),
        entropy=tuple(scores.entropy[place] for place in places),
        reference=tuple(scores.reference[place] for place in places),
        values=tuple(scores.values[place] for place in places),
    )


def score_rollouts(
    model: AdaptedModel,
    rollouts: Rollouts,
    roles: Mapping[str, Roles] | None = None,
    *,
    max_tokens: int = 8192,
    bound: float | None = None,
) -> Scores:
    """Score all answers under their policies and these policies' roles; each micro-batch is one pass of the base.

    ``roles``: by the policy's name. ``max_tokens`` of a micro-batch, padding included. ``bound`` of a deviation: by
    default that of the base's precision in :data:`BOUNDS`.

    Raises:
        UserError: rollout and scoring disagree, a value adapter has no head of one output, a reference has a head, or
            an adapter does not exist.
    """
    roles = roles or {}
    unknown = sorted(set(roles) - set(rollouts.policies))
    if unknown:
        raise UserError(f"there are roles of '{unknown[0]}', which has no answers; there are: {rollouts.policies}")
    _check_roles(model, roles)
    work = _Work()
    for place, answer in enumerate(rollouts.answers):
        row, own = answer.encoded(), roles.get(answer.policy, Roles())
        work.add(place, "policy", RoutedRow(row, answer.stack))
        if own.reference is not None:
            work.add(place, "reference", RoutedRow(row, as_stack(own.reference)))
        if own.value is not None:
            work.add(place, "value", RoutedRow(row, as_stack(own.value)))
    batches = work.run(model, rollouts.sampling.temperature, max_tokens)
    number = range(len(rollouts.answers))
    log_probs = tuple(work.found[place, "policy"] for place in number)
    for place in number:
        for role in ("policy", "reference", "value"):
            _check_length(rollouts.answers[place], role, work.found.get((place, role)))
    deviations = {
        policy: _deviation([(rollouts.answers[place], log_probs[place]) for place in rollouts.of(policy)])
        for policy in rollouts.policies
    }
    for deviation in deviations.values():
        deviation.check(BOUNDS.get(model.dtype, 1e-3) if bound is None else bound)
    return Scores(
        log_probs,
        tuple(work.entropies[place] for place in number),
        tuple(work.found.get((place, "reference")) for place in number),
        tuple(work.found.get((place, "value")) for place in number),
        deviations,
        batches,
    )


@dataclass
class _Work:
    rows: list[RoutedRow] = field(default_factory=list)
    owners: list[tuple[int, str]] = field(default_factory=list)
    found: dict[tuple[int, str], torch.Tensor] = field(default_factory=dict)
    entropies: dict[int, torch.Tensor] = field(default_factory=dict)

    def add(self, place: int, role: str, row: RoutedRow) -> None:
        self.rows.append(row)
        self.owners.append((place, role))

    @torch.no_grad()
    def run(self, model: AdaptedModel, temperature: float, max_tokens: int) -> int:
        """Fill in what is found; gives the number of micro-batches."""
        rows = with_virtual_tokens(model, self.rows)
        plan = plan_micro_batches(rows, max_tokens)
        for order in plan:
            batch = build_micro_batch(model, rows, order)
            outputs = token_outputs(model, batch, temperature=temperature, tell_entropy=True)
            for index, output in zip(order, outputs, strict=True):
                place, role = self.owners[index]
                self.found[place, role] = output.values
                if role == "policy" and output.entropy is not None:
                    self.entropies[place] = output.entropy
        return len(plan)


@dataclass(frozen=True)
class TokenOutput:
    """What one row of a micro-batch gives for its learnt tokens, each (tokens,).

    ``values``: log-probabilities; or, where an adapter of the row has a head of one output, what that gives before each
    token. ``entropy`` of the distribution that each token is drawn from, where it was asked for.
    """

    values: torch.Tensor
    entropy: torch.Tensor | None = None


def token_outputs(
    model: AdaptedModel, batch: MicroBatch, *, temperature: float = 1.0, tell_entropy: bool = False
) -> list[TokenOutput]:
    """What each row of a micro-batch gives, in its order, in one pass of the base; with gradients, if they are on.

    ``temperature`` divides the logits. With ``tell_entropy`` there are no gradients.

    Raises:
        UserError: a head has more outputs than one.
    """
    hidden, score = learnt_states(model, batch), heated(model.score, temperature)
    counts = batch.padded.counts
    stops = torch.tensor(counts).cumsum(0).tolist()
    heads = [model.head_of(segment.stack) for segment in batch.routing.segments]
    outputs: list[TokenOutput | None] = [None] * len(counts)
    for name in dict.fromkeys(heads):
        own = [number for number, head in enumerate(heads) if head == name]
        where = torch.cat([torch.arange(stops[n] - counts[n], stops[n]) for n in own]).to(hidden.device)
        entropies: Sequence[torch.Tensor | None] = [None] * len(own)
        if name is not None:
            values = _head_values(model, name, hidden[where])
        else:
            routing = batch.routing.select(batch.padded.positions[where]) if model.head_is_adapted else None
            targets = batch.padded.targets[where]
            if tell_entropy:
                values, every = _log_probs_and_entropy(model, score, hidden[where], targets, routing)
                entropies = every.split([counts[n] for n in own])  # type: ignore[no-untyped-call]
            else:
                values = token_log_probs(
                    score,
                    hidden[where],
                    targets,
                    vocabulary=model.vocabulary,
                    routing=routing,
                    head_is_trained=model.head_is_adapted,
                )
        parts = values.split([counts[n] for n in own])  # type: ignore[no-untyped-call]
        for number, part, told in zip(own, parts, entropies, strict=True):
            outputs[number] = TokenOutput(part, told)
    return [output for output in outputs if output is not None]


@torch.no_grad()
def _log_probs_and_entropy(
    model: AdaptedModel, score: Score, hidden: torch.Tensor, targets: torch.Tensor, routing: Routing | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(target) and the entropy at each position, (n,) each; logits are there for a chunk of them at a time."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    found = torch.empty(2, len(targets), dtype=dtype, device=hidden.device)
    step = chunk_rows(model.vocabulary, hidden.element_size())
    for start in range(0, len(targets), step):
        stop = min(start + step, len(targets))
        logits = score(hidden[start:stop], None if routing is None else routing.part(start, stop)).to(dtype)
        found[0, start:stop] = logits.gather(1, targets[start:stop, None]).squeeze(1) - logits.logsumexp(-1)
        found[1, start:stop] = entropy(logits)
    return found[0], found[1]


def _head_values(model: AdaptedModel, name: str, hidden: torch.Tensor) -> torch.Tensor:
    """What a head of one output gives: (n, hidden) → (n,), in float32 at least."""
    head = model.adapter(name).head
    assert head is not None
    values: torch.Tensor = head(hidden)
    if values.shape[-1] != 1:
        raise UserError(
            f"the head of '{name}' has {values.shape[-1]} outputs; a value is one number a token",
            hint="Add the value adapter with criteria=1.",
        )
    return values.squeeze(-1).to(torch.promote_types(values.dtype, torch.float32))


def _check_roles(model: AdaptedModel, roles: Mapping[str, Roles]) -> None:
    for policy, own in roles.items():
        for role, given in (("reference", own.reference), ("value", own.value)):
            stack = () if given is None else as_stack(given)
            for name in stack:
                model.adapter(name)
            head = model.head_of(stack)
            if role == "reference" and head is not None:
                raise UserError(
                    f"the reference of '{policy}' has a head ({head}), and predicts no tokens",
                    hint="The reference is an adapter that writes, or () for the bare base.",
                )
            if role == "value" and given is not None and head is None:
                raise UserError(
                    f"the value adapter of '{policy}' ({' + '.join(stack) or 'the bare base'}) has no head",
                    hint="Add it with one: model.add(name, config, criteria=1).",
                )


def _check_length(answer: Rollout, role: str, found: torch.Tensor | None) -> None:
    """The first token of a row has nothing before it, so a prompt of virtual tokens alone leaves others too few."""
    if found is not None and len(found) != len(answer.token_ids):
        raise UserError(
            f"{answer.place}: the {role} sees {len(found)} of the answer's {len(answer.token_ids)} tokens: without "
            "virtual tokens the prompt is empty",
            hint="Give the policy's template at least one token of text before the answer.",
        )


def _deviation(pairs: Sequence[tuple[Rollout, torch.Tensor]]) -> Deviation:
    differences = [
        (torch.tensor(answer.drawn_log_probs, dtype=torch.float64) - found.double().cpu()).abs()
        for answer, found in pairs
    ]
    every = torch.cat(differences)
    peaks = torch.stack([each.max() for each in differences]).nan_to_num(torch.inf)
    worst = pairs[int(peaks.argmax())][0]
    return Deviation(worst.policy, float(peaks.max()), float(every.mean()), len(every), worst.place)
