from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import graftlm
from graftlm import AdaptedModel
from graftlm.alignment.episodes import Episodes, ppo_episodes
from graftlm.alignment.rewards import function_reward, reward_rollouts
from graftlm.alignment.rollouts import Prompt, Sampling, make_policy, prompts_of, roll_out
from graftlm.alignment.scoring import Roles, score_rollouts, token_outputs
from graftlm.alignment.watching import concerns, phase_statistics
from graftlm.data.instances import Instance, Message
from graftlm.data.templates import ChatTemplate
from graftlm.errors import UserError
from graftlm.objectives import ppo_policy_loss, ppo_value_loss, step_share
from graftlm.training.forward import RoutedRow, build_micro_batch, plan_micro_batches
from tests.alignment.conftest import asked
from tests.families import ENCODER_DECODERS, FAMILIES, add_random, randomise
from tests.methods import METHODS

Make = Callable[..., AdaptedModel]
PROMPTS = asked("w7 w8 w9", "w20", "w30 w31 w32 w33 w34 w35 w36 w37 w38 w39 w40 w41 w42 w43")
WIDE = Sampling(n=3, max_new_tokens=6, temperature=1.3)


@pytest.mark.parametrize("family", [*FAMILIES, *ENCODER_DECODERS])
def test_rollout_and_scoring_agree_in_every_family(worded: Make, template: ChatTemplate, family: str) -> None:
    model = worded(family)
    add_random(model, {"a": graftlm.LoRA(rank=2), "b": graftlm.LoRA(rank=3)})
    policies = [make_policy(model, "a", template), make_policy(model, "ab", template, ("a", "b"))]
    rollouts = roll_out(model, policies, PROMPTS, WIDE, step=1)
    assert len(rollouts.answers) == 2 * 3 * 3
    scores = score_rollouts(model, rollouts, {"a": Roles(reference="b"), "ab": Roles(reference=())}, bound=1e-4)
    for answer, found, reference in zip(rollouts.answers, scores.log_probs, scores.reference, strict=True):
        assert answer.drawn_log_probs == pytest.approx(found.tolist(), abs=1e-4)
        assert answer.log_probs != pytest.approx(found.tolist(), abs=1e-3)  # those are at temperature 1
        assert reference is not None
        assert not torch.allclose(reference, found, atol=1e-3)
    assert all(deviation.largest < 1e-4 for deviation in scores.deviations.values())


def test_rollout_and_scoring_agree_for_every_method_in_one_batch(worded: Make, template: ChatTemplate) -> None:
    model = worded("qwen2")
    add_random(model, dict(METHODS))
    policies = [make_policy(model, name, template) for name in METHODS]
    rollouts = roll_out(model, policies, PROMPTS[:2], replace(WIDE, n=2), step=1)
    scores = score_rollouts(model, rollouts, {name: Roles(reference=()) for name in METHODS}, bound=1e-4)
    for name in METHODS:
        assert scores.deviations[name].largest < 1e-4
        assert scores.deviations[name].tokens == sum(len(rollouts.answers[p].token_ids) for p in rollouts.of(name))
    # The reference is one and the same, whatever virtual tokens stand in the policy's row.
    row = rollouts.answers[0].encoded()
    for name in ("prompt", "p-tuning-mlp", "prefix"):
        place = rollouts.of(name)[0]
        batch = build_micro_batch(model, [RoutedRow(rollouts.answers[place].encoded(), ())], [0])
        alone = token_outputs(model, batch, temperature=WIDE.temperature)[0].values
        torch.testing.assert_close(scores.reference[place], alone, rtol=0, atol=1e-5)
    assert row.n_supervised == len(rollouts.answers[0].token_ids)


def test_policies_together_draw_what_each_draws_alone(worded: Make, template: ChatTemplate) -> None:
    model = worded(dtype=torch.float64)
    add_random(model, {name: METHODS[name] for name in ("lora", "prefix", "prompt", "seq_bn")})
    policies = [make_policy(model, name, template) for name in model.adapters]
    together = roll_out(model, policies, PROMPTS, WIDE, step=4)
    for policy in policies:
        alone = roll_out(model, [policy], PROMPTS, WIDE, step=4, max_rows=2)
        own = [together.answers[place] for place in together.of(policy.label)]
        assert [each.token_ids for each in own] == [each.token_ids for each in alone.answers]
    assert len({answer.token_ids for answer in together.answers}) > 20


def test_answers_depend_on_step_prompt_and_sample(worded: Make, template: ChatTemplate) -> None:
    model, resumed = worded(), worded()
    for each in (model, resumed):
        add_random(each, {"a": graftlm.LoRA(rank=2)})
    policy = make_policy(model, "a", template)
    first, later = (roll_out(model, [policy], PROMPTS, WIDE, step=step) for step in (1, 2))
    assert roll_out(resumed, [make_policy(resumed, "a", template)], PROMPTS, WIDE, step=1) == first  # the same bits
    assert [a.token_ids for a in first.answers] != [a.token_ids for a in later.answers]
    fewer = roll_out(model, [policy], PROMPTS[1:], WIDE, step=1)
    assert [a.token_ids for a in fewer.answers] == [a.token_ids for a in first.answers[3:]]
    assert len({a.token_ids for a in first.answers}) == 9


def test_prompt_of_a_group_is_read_once(worded: Make, template: ChatTemplate) -> None:
    model = worded()
    add_random(model, {"a": graftlm.LoRA(rank=2), "b": graftlm.LoRA(rank=2)})
    policies = [make_policy(model, name, template) for name in "ab"]
    prompts = asked(*(f"w{n} " + " ".join(f"w{k}" for k in range(3, 30)) for n in (7, 8)))
    sampling = Sampling(n=8, max_new_tokens=3)
    rollouts = roll_out(model, policies, prompts, sampling, step=1)
    lengths = {(a.policy, a.prompt.row): len(a.prompt_ids) for a in rollouts.answers}
    assert rollouts.read + rollouts.reused == sum(lengths.values())
    # Where a group does not fit at once, the rest goes on from what was kept: all but the last part of a block.
    narrow = roll_out(model, policies, prompts, sampling, step=1, max_rows=3)
    assert narrow.reused > 0
    assert narrow.read < 8 * sum(lengths.values()) / 2
    assert [a.token_ids for a in narrow.answers] == [a.token_ids for a in rollouts.answers]


def test_new_weights_are_used_at_once(worded: Make, template: ChatTemplate) -> None:
    model = worded()
    add_random(model, {"a": graftlm.LoRA(rank=2)})
    policy = make_policy(model, "a", template)
    roll_out(model, [policy], PROMPTS, WIDE, step=1)
    for parameter in model.adapters["a"].parameters():
        parameter.data = parameter.data * 3  # counted by no version
    rollouts = roll_out(model, [policy], PROMPTS, WIDE, step=1)
    assert score_rollouts(model, rollouts, bound=1e-4).deviations["a"].largest < 1e-4


def test_scoring_after_a_step_is_refused(worded: Make, template: ChatTemplate) -> None:
    model = worded()
    add_random(model, {"a": graftlm.LoRA(rank=2)})
    rollouts = roll_out(model, [make_policy(model, "a", template)], PROMPTS, WIDE, step=1)
    randomise(model.adapters["a"], seed=9, std=0.5)
    with pytest.raises(
        UserError, match=r"a, prompts, row \d, answer \d: the log-probability of a token differs"
    ) as error:
        score_rollouts(model, rollouts)
    assert "before the adapter's next step" in str(error.value)


def test_all_roles_share_passes_of_the_base(worded: Make, template: ChatTemplate) -> None:
    model = worded()
    add_random(model, {"a": graftlm.LoRA(rank=2), "b": METHODS["prefix"]})
    model.add("critic", graftlm.LoRA(rank=2), criteria=1)
    randomise(model.adapters["critic"], seed=3)
    policies = [make_policy(model, name, template) for name in "ab"]
    rollouts = roll_out(model, policies, PROMPTS, WIDE, step=1)
    calls = []
    handle = model.base.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    roles = {"a": Roles(reference=(), value="critic"), "b": Roles(reference="a")}
    scores = score_rollouts(model, rollouts, roles, max_tokens=10_000)
    handle.remove()
    assert len(calls) == scores.micro_batches <= 3
    tight = score_rollouts(model, rollouts, roles, max_tokens=40)
    assert tight.micro_batches > 10
    for place, answer in enumerate(rollouts.answers):
        for one, other in ((scores.log_probs, tight.log_probs), (scores.reference, tight.reference)):
            torch.testing.assert_close(one[place], other[place], rtol=0, atol=1e-5)
        value = scores.values[place]
        assert (value is None) == (answer.policy == "b")
        if value is not None:
            torch.testing.assert_close(value, tight.values[place], rtol=0, atol=1e-5)
            # V_t is read where token t is chosen: at the last token of the prompt for the first one.
            ids = torch.tensor([[*answer.prompt_ids, *answer.token_ids]])
            states = model.hidden(ids, adapters="critic", use_cache=False).last_hidden_state[0]
            head = model.adapters["critic"].head
            assert head is not None
            expected = head(states[len(answer.prompt_ids) - 1 : -1]).squeeze(1)
            torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-5)


def test_entropy_is_that_of_the_distribution_that_is_drawn_from(worded: Make, template: ChatTemplate) -> None:
    model = worded()
    add_random(model, {"a": graftlm.LoRA(rank=2)})
    rollouts = roll_out(model, [make_policy(model, "a", template)], PROMPTS[:1], WIDE, step=1)
    scores = score_rollouts(model, rollouts)
    one = rollouts.answers[0]
    with torch.no_grad():
        logits = model(torch.tensor([[*one.prompt_ids, *one.token_ids]]), adapters="a", use_cache=False).logits[0]
    log_probs = (logits / 1.3).log_softmax(-1)[len(one.prompt_ids) - 1 : -1]
    torch.testing.assert_close(scores.entropy[0], -(log_probs.exp() * log_probs).sum(-1), rtol=1e-4, atol=1e-5)


def test_gradients_of_token_outputs_equal_plain_autograd(worded: Make, template: ChatTemplate) -> None:
    model = worded(dtype=torch.float64)
    add_random(model, {"a": graftlm.LoRA(rank=2)})
    one = roll_out(model, [make_policy(model, "a", template)], PROMPTS[:1], WIDE, step=1).answers[0]
    parameters = list(model.adapters["a"].parameters())
    batch = build_micro_batch(model, [RoutedRow(one.encoded(), ("a",))], [0])
    found = token_outputs(model, batch, temperature=1.3)[0].values
    gradients = torch.autograd.grad(found.square().sum(), parameters)
    logits = model(torch.tensor([[*one.prompt_ids, *one.token_ids]]), adapters="a", use_cache=False).logits[0]
    log_probs = (logits / 1.3).log_softmax(-1)[len(one.prompt_ids) - 1 : -1]
    plain = log_probs.gather(1, torch.tensor(one.token_ids)[:, None]).squeeze(1)
    for one_, other in zip(gradients, torch.autograd.grad(plain.square().sum(), parameters), strict=True):
        torch.testing.assert_close(one_, other, rtol=1e-7, atol=1e-9)


def test_prompts_longer_than_the_context_are_told(worded: Make, template: ChatTemplate) -> None:
    model = worded()
    add_random(model, {"a": graftlm.LoRA(rank=2), "long": graftlm.Prefix(length=30, projection=False)})
    policies = [make_policy(model, name, template) for name in ("a", "long")]
    prompts = asked("w7", " ".join(["w8"] * 40), " ".join(["w9"] * 80))
    rollouts = roll_out(model, policies, prompts, Sampling(n=2, max_new_tokens=50, temperature=5.0), step=1)
    assert {(each.policy, each.prompt.row) for each in rollouts.left_out} == {("a", 3), ("long", 2), ("long", 3)}
    assert "there is room for 63" in rollouts.left_out[0].reason
    assert {(each.policy, each.prompt.row) for each in rollouts.answers} == {("a", 1), ("a", 2), ("long", 1)}
    assert "context" in {each.finish for each in rollouts.answers}
    score_rollouts(model, rollouts, bound=1e-4)
    with pytest.raises(UserError, match=r"a: it cannot be asked any prompt: prompts, row 3: the prompt has 83 tokens"):
        roll_out(model, policies, prompts[2:], WIDE, step=1)


def test_policies_that_never_end_are_cut_off_and_pay_for_it(worded: Make, template: ChatTemplate) -> None:
    model = worded()
    add_random(model, {"a": graftlm.LoRA(rank=2)})
    policy = replace(make_policy(model, "a", template), stop_ids=())
    rollouts = roll_out(model, [policy], PROMPTS, WIDE, step=1)
    assert {answer.finish for answer in rollouts.answers} == {"length"}
    assert {len(answer.token_ids) for answer in rollouts.answers} == {6}
    scores = score_rollouts(model, rollouts)
    rewarded = reward_rollouts(rollouts, [function_reward(lambda messages, text: 1.0, "one")], missing_end_penalty=3.0)
    assert set(rewarded.totals.tolist()) == {-2.0}
    statistics = phase_statistics(rollouts, scores, rewarded, "a")
    assert (statistics.ended, statistics.equal_groups) == (0.0, 3)
    assert {"never_ends", "equal_rewards"} == {concern.kind for concern in concerns([statistics])}


def test_weights_that_are_no_numbers_stop_the_rollout(worded: Make, template: ChatTemplate) -> None:
    model = worded()
    add_random(model, {"a": graftlm.LoRA(rank=2)})
    for parameter in model.adapters["a"].parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(
        UserError, match=r"a, prompts, row 1: no answer: the adapter a gives logits that are not finite"
    ):
        roll_out(model, [make_policy(model, "a", template)], PROMPTS[:1], WIDE, step=1)


def test_what_is_refused(worded: Make, template: ChatTemplate) -> None:
    model = worded()
    add_random(model, {"a": graftlm.LoRA(rank=2)})
    policy = make_policy(model, "a", template)
    with pytest.raises(UserError, match="two policies are called 'a'"):
        roll_out(model, [policy, policy], PROMPTS, WIDE, step=1)
    with pytest.raises(UserError, match="there are no policies"):
        roll_out(model, [], PROMPTS, WIDE, step=1)
    with pytest.raises(UserError, match="unknown policy 'b'"):
        roll_out(model, [policy], {"a": PROMPTS, "b": PROMPTS}, WIDE, step=1)
    with pytest.raises(UserError, match="a: it cannot be asked any prompt"):
        roll_out(model, [policy], {}, WIDE, step=1)
    with pytest.raises(UserError, match="row 1 is there twice"):
        roll_out(model, [policy], [*PROMPTS, PROMPTS[0]], WIDE, step=1)
    with pytest.raises(UserError, match="unknown adapter 'b'"):
        make_policy(model, "b", template)
    for wrong in ({"temperature": 0.0}, {"n": 0}, {"max_new_tokens": 0}, {"temperature": float("nan")}):
        with pytest.raises(UserError):
            Sampling(**wrong)
    rollouts = roll_out(model, [policy], PROMPTS[:1], WIDE, step=1)
    with pytest.raises(UserError, match=r"the value adapter of 'a' .* has no head"):
        score_rollouts(model, rollouts, {"a": Roles(value="a")})
    with pytest.raises(UserError, match="roles of 'z'"):
        score_rollouts(model, rollouts, {"z": Roles()})


def test_prompts_of_instances_keep_the_answer_as_reference() -> None:
    turns = (Message("user", "2 + 2?"), Message("assistant", "4"))
    given = [Instance(turns, "sums.jsonl", 3), Instance(turns[:1], "sums.jsonl", 4)]
    first, second = prompts_of(given)
    assert first == Prompt(turns[:1], 3, "sums.jsonl", "4")
    assert second == Prompt(turns[:1], 4, "sums.jsonl")


def test_policies_and_values_trained_together_learn_what_each_learns_alone(
    worded: Make, template: ChatTemplate
) -> None:
    """Gradients of PPO for two policies with a value adapter each, all in shared micro-batches."""
    model = worded(dtype=torch.float64)
    add_random(model, {name: METHODS[name] for name in ("lora", "prefix")})
    for number, name in enumerate(("lora-critic", "prefix-critic")):
        model.add(name, graftlm.LoRA(rank=2), criteria=1)
        randomise(model.adapters[name], seed=7 + number)
    names = ["lora", "prefix"]
    reward = function_reward(lambda messages, text: float(len(text) % 7), "odd")

    def gradients(chosen: list[str], max_tokens: int) -> dict[str, torch.Tensor]:
        rollouts = roll_out(model, [make_policy(model, name, template) for name in chosen], PROMPTS, WIDE, step=1)
        roles = {name: Roles(reference=(), value=f"{name}-critic") for name in chosen}
        scores = score_rollouts(model, rollouts, roles)
        rewarded = reward_rollouts(rollouts, [reward])
        rows: list[RoutedRow] = []
        owners: list[tuple[Episodes, int, bool]] = []
        for name in chosen:
            episodes = ppo_episodes(rollouts, scores, rewarded, name)
            for number, row in enumerate(episodes.rows):
                rows += [RoutedRow(row, (name,)), RoutedRow(row, (f"{name}-critic",))]
                owners += [(episodes, number, True), (episodes, number, False)]
        for order in plan_micro_batches(rows, max_tokens):
            outputs = token_outputs(model, build_micro_batch(model, rows, order), temperature=WIDE.temperature)
            loss = torch.zeros((), dtype=torch.float64)
            for index, output in zip(order, outputs, strict=True):
                episodes, number, is_policy = owners[index]
                part = episodes.part([number])
                if is_policy:
                    terms = ppo_policy_loss(output.values, part.old_log_probs, part.advantages)
                else:
                    assert part.old_values is not None
                    assert part.returns is not None
                    terms = ppo_value_loss(output.values, part.old_values, part.returns)
                loss = loss + step_share(terms, part.counts, episodes.size)
            loss.backward()
        found = {
            f"{name}.{key}": parameter.grad.clone()
            for name in model.adapters
            for key, parameter in model.adapters[name].named_parameters()
            if parameter.grad is not None
        }
        for name in model.adapters:
            model.adapters[name].zero_grad()
        return found

    together = gradients(names, 10_000)
    alone = gradients(names[:1], 60) | gradients(names[1:], 60)
    assert together.keys() == alone.keys()
    assert {key.split(".")[0] for key in together} == {*model.adapters}
    assert any(float(gradient.norm()) > 1e-3 for gradient in together.values())
    for key, gradient in together.items():
        torch.testing.assert_close(gradient, alone[key], rtol=1e-6, atol=1e-9)
