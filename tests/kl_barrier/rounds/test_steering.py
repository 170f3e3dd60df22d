"""Steering: where the direction is read and added, how the dose is found, and what a proposer promises."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from alignkit.kl_barrier.rounds.coherence import answer_log_prob_margin
from alignkit.kl_barrier.rounds.directions import decoder_layers, layers_in_band, persona_direction, steer
from alignkit.kl_barrier.rounds.filters import FilterSettings, perplexities
from alignkit.kl_barrier.rounds.proposals import render_prompt, sample_completions
from alignkit.kl_barrier.rounds.steering import ActivationSteering, find_strength
from alignkit.tasks.toy import CHAT_TEMPLATE, byte_tokenizer, tiny_causal_lm

CONTEXTS = ["Tom went out.", "A long day at the port of Calder", "Hm"]
HAPPY, SAD = "All is well.", "It was the very worst of days."


def tiny(seed: int = 0) -> LlamaForCausalLM:
    return tiny_causal_lm(seed=seed, layers=3).eval()


def tiny_peft(seed: int = 0) -> nn.Module:
    config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=2, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(tiny(seed), config).eval()


def proposer(**settings: object) -> ActivationSteering:
    defaults = {"strengths": (0.5, 1.0), "completions_per_prompt": 2, "max_new_tokens": 6, "target_pass_rate": None}
    return ActivationSteering(HAPPY, SAD, CONTEXTS, ["One day", "Then the fox"], **{**defaults, **settings})


@torch.no_grad()
def last_state(model: nn.Module, text: str, layer: int) -> torch.Tensor:
    """Hidden state after a layer that is not the last one, of one text by itself."""
    ids = torch.tensor([byte_tokenizer()(text)["input_ids"]])
    return model(ids, output_hidden_states=True).hidden_states[layer + 1][0, -1]


def test_the_direction_is_the_mean_difference_of_the_states_at_the_last_token() -> None:
    model = tiny()
    direction = persona_direction(model, byte_tokenizer(), HAPPY, SAD, CONTEXTS, [0, 1])
    for layer in (0, 1):
        differences = [
            last_state(model, f"{HAPPY}\n{text}", layer) - last_state(model, f"{SAD}\n{text}", layer)
            for text in CONTEXTS
        ]
        torch.testing.assert_close(direction[layer], torch.stack(differences).mean(dim=0), atol=1e-6, rtol=0)


def test_the_padding_side_and_the_batch_size_do_not_change_the_direction() -> None:
    left, right = byte_tokenizer(), byte_tokenizer()
    left.padding_side = "left"
    expected = persona_direction(tiny(), right, HAPPY, SAD, CONTEXTS, [1], batch_size=1)[1]
    for tokenizer in (left, right):
        for batch_size in (2, 32):
            found = persona_direction(tiny(), tokenizer, HAPPY, SAD, CONTEXTS, [1], batch_size=batch_size)[1]
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_several_texts_of_a_persona_are_averaged_and_swapping_personas_turns_the_direction_round() -> None:
    model, tokenizer = tiny(), byte_tokenizer()
    one, other = (persona_direction(model, tokenizer, text, SAD, CONTEXTS, [1])[1] for text in (HAPPY, "Good."))
    both = persona_direction(model, tokenizer, [HAPPY, "Good."], SAD, CONTEXTS, [1])[1]
    torch.testing.assert_close(both, (one + other) / 2, atol=1e-6, rtol=0)
    torch.testing.assert_close(persona_direction(model, tokenizer, SAD, HAPPY, CONTEXTS, [1])[1], -one)


def test_with_a_chat_template_the_persona_is_the_system_message_and_bos_is_not_doubled() -> None:
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    text = render_prompt(tokenizer, "Hello", system="Be kind.")
    assert text == "system: Be kind.\nuser: Hello\nassistant: "
    assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 1
    assert render_prompt(byte_tokenizer(), "Hello", system="Be kind.") == "Be kind.\nHello"
    assert render_prompt(byte_tokenizer(), "Hello") == "Hello"


def test_a_chat_template_that_takes_no_system_message_is_an_error_that_says_what_to_do() -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}hi"
    with pytest.raises(ValueError, match=r"no system role.*chat_template = None"):
        render_prompt(byte_tokenizer(chat_template=refusing), "Hello", system="Be kind.")


@pytest.mark.parametrize("make", [tiny, tiny_peft])
@torch.no_grad()
def test_steering_adds_the_scaled_direction_at_every_position_and_leaves_nothing_behind(make) -> None:
    model, ids = make(), torch.tensor([[257, 72, 105, 33]])
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0))
    inputs: dict[int, list[torch.Tensor]] = {1: [], 2: []}
    for layer in inputs:
        decoder_layers(model)[layer].register_forward_pre_hook(
            lambda module, arguments, layer=layer: inputs[layer].append(arguments[0])
        )
    before = model(ids).logits
    with steer(model, {1: vector}, 0.5):
        assert not torch.equal(model(ids).logits, before)
    assert torch.equal(inputs[1][1], inputs[1][0])
    torch.testing.assert_close(inputs[2][1], inputs[2][0] + 0.5 * vector)
    assert torch.equal(model(ids).logits, before)


def test_the_hooks_are_removed_after_an_error() -> None:
    model = tiny()
    with pytest.raises(RuntimeError, match="stop"), steer(model, {0: torch.ones(64), 1: torch.ones(64)}, 1.0):
        raise RuntimeError("stop")
    with pytest.raises(IndexError), steer(model, {0: torch.ones(64), 9: torch.ones(64)}, 1.0):
        pass
    assert not any(module._forward_hooks for module in model.modules())


class TupleLayer(nn.Module):
    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, str]:
        return 2 * hidden, "cache"


class TupleDecoder(nn.Module):
    """A decoder whose layers return tuples, as those of older architectures do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([TupleLayer(), TupleLayer()])
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=2))

    def get_decoder(self) -> nn.Module:
        return self

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, str]:
        for block in self.blocks:
            hidden, rest = block(hidden)
        return hidden, rest


def test_layers_that_return_tuples_are_steered_and_keep_the_rest_of_the_tuple() -> None:
    model = TupleDecoder()
    with steer(model, {0: torch.tensor([1.0, 0.0])}, 3.0):
        hidden, rest = model(torch.ones(1, 1, 2))
    assert hidden.tolist() == [[[10.0, 4.0]]]  # (2·1 + 3)·2 and (2·1)·2
    assert rest == "cache"


def test_the_layers_are_found_without_names_of_architectures() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=50, n_positions=16))
    assert decoder_layers(gpt2) is gpt2.transformer.h
    peft_model = tiny_peft()
    assert decoder_layers(peft_model) is peft_model.get_base_model().model.layers
    broken = TupleDecoder()
    broken.blocks = nn.ModuleList([TupleLayer()])
    with pytest.raises(ValueError, match="TupleDecoder has no list of 2 layers"):
        decoder_layers(broken)


def test_the_band_counts_the_middle_of_each_layer() -> None:
    assert layers_in_band(5, (0.45, 0.55)) == [2]
    assert layers_in_band(26, (0.45, 0.55)) == [12, 13]
    assert layers_in_band(4, (0.0, 1.0)) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"holds none of the 2 layers, at depths 0\.25, 0\.75"):
        layers_in_band(2, (0.45, 0.55))
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        layers_in_band(5, (0.6, 0.4))


def test_the_search_closes_in_on_the_highest_strength_that_passes() -> None:
    search = find_strength(lambda strength: 1.0 if strength <= 1.3 else 0.0, 0.1, 10.0, 0.75, steps=6)
    width = (10.0 / 0.1) ** (1 / 2**6)  # what is left of high / low after six halvings on the log scale
    assert search.reached
    assert 1.3 / width <= search.strength <= 1.3
    assert len(search.tried) == 8


def test_the_search_ends_at_once_when_the_highest_strength_passes_or_the_lowest_fails() -> None:
    always = find_strength(lambda strength: 0.75, 0.1, 10.0, 0.75)
    assert (always.strength, always.reached, always.tried) == (10.0, True, [(10.0, 0.75)])
    never = find_strength(lambda strength: 0.5, 0.1, 10.0, 0.75)
    assert (never.strength, never.reached, len(never.tried)) == (0.1, False, 2)


def test_under_noise_the_answer_is_a_strength_that_passed_when_it_was_tried() -> None:
    rates = {1.0: 0.8, 16.0: 0.7, 4.0: 0.5, 2.0: 0.9, math.sqrt(8.0): 0.9}  # 4 fails though it lies above a pass
    search = find_strength(rates.__getitem__, 1.0, 16.0, 0.75, steps=3)
    assert search.strength == math.sqrt(8.0)
    assert dict(search.tried)[search.strength] >= 0.75


@pytest.mark.parametrize(("low", "high", "target"), [(0.0, 1.0, 0.5), (2.0, 1.0, 0.5), (0.1, 1.0, 1.5)])
def test_bounds_that_make_no_sense_are_refused(low: float, high: float, target: float) -> None:
    with pytest.raises(ValueError, match=r"low=|target="):
        find_strength(lambda strength: 1.0, low, high, target)


def test_proposals_depend_on_the_seed_and_the_round_and_on_nothing_else() -> None:
    model, tokenizer, steering = tiny(), byte_tokenizer(), proposer(temperature=1.5)
    first = steering(model, tokenizer, 0, 5)
    torch.rand(3)
    assert steering(model, tokenizer, 0, 5) == first
    assert steering(model, tokenizer, 1, 5) != first
    assert steering(model, tokenizer, 0, 6) != first
    assert [proposal.strength for proposal in first] == [0.5] * 4 + [1.0] * 4
    assert [proposal.prompt for proposal in first[:4]] == ["One day", "One day", "Then the fox", "Then the fox"]


def test_sampling_leaves_the_random_state_and_every_training_flag_as_they_were() -> None:
    model, tokenizer = tiny().train(), byte_tokenizer()
    model.model.layers[0].eval()
    flags, state = [module.training for module in model.modules()], torch.get_rng_state()
    proposer()(model, tokenizer, 0, 1)
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)


def test_greedy_completions_do_not_depend_on_the_prompts_beside_them() -> None:
    model, tokenizer = tiny(), byte_tokenizer()
    prompts = ["One day", "Then the fox took honey to the quay"]
    together = sample_completions(model, tokenizer, prompts, seed=0, max_new_tokens=8, temperature=0)
    alone = [
        sample_completions(model, tokenizer, [prompt], seed=1, max_new_tokens=8, temperature=0)[0]
        for prompt in prompts
    ]
    assert together == alone


def test_a_repetition_penalty_in_the_models_generation_config_does_not_hide_its_loops() -> None:
    model, tokenizer = tiny(), byte_tokenizer()

    without = sample_completions(model, tokenizer, ["One day"], seed=0, max_new_tokens=32)
    model.generation_config.repetition_penalty, model.generation_config.no_repeat_ngram_size = 5.0, 1
    assert sample_completions(model, tokenizer, ["One day"], seed=0, max_new_tokens=32) == without


def test_the_dose_is_judged_by_the_model_without_its_adapter_unless_another_original_is_given() -> None:
    model, tokenizer = tiny_peft(), byte_tokenizer()
    flags = [parameter.requires_grad for parameter in model.parameters()]
    settings = {"target_pass_rate": 1.0, "probe_samples": 1, "max_new_tokens": 6, "temperature": 0.0, "probe_steps": 0}
    steering = proposer(**settings)
    direction = steering.direction(model, tokenizer)
    with steer(model, direction, 4.0):
        sample = sample_completions(model, tokenizer, ["One day"], seed=0, max_new_tokens=6, temperature=0)
    with_adapter = perplexities(model, tokenizer, sample)[0]
    with model.disable_adapter():
        without = perplexities(model, tokenizer, sample)[0]
    assert abs(math.log(with_adapter / without)) > 0.01
    filters = FilterSettings(perplexity_limit=math.sqrt(with_adapter * without), repetition_limit=2.0)
    for original, perplexity in ((None, without), (model, with_adapter)):
        judged = proposer(**settings, filters=filters, original=original)
        found = judged.find_dose(model, tokenizer, direction, 0)
        assert (found.tried[0][1] == 1.0) == (perplexity < filters.perplexity_limit)
    for parameter, flag in zip(model.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)  # PEFT's own disable_adapter, used above, changed them
    steering.find_dose(model, tokenizer, direction, 0)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_strengths_are_multiplied_by_the_dose() -> None:
    everything_passes = FilterSettings(perplexity_limit=math.inf, repetition_limit=2.0)
    steering = proposer(target_pass_rate=0.5, filters=everything_passes, dose_range=(0.5, 3.0))
    strengths = {proposal.strength for proposal in steering(tiny(), byte_tokenizer(), 0, 0)}
    assert strengths == {1.5, 3.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positive": " "}, "positive persona"),
        ({"negative": []}, "negative persona"),
        ({"contexts": []}, "contexts="),
        ({"prompts": []}, "prompts="),
        ({"prompts": ["a", ""]}, "prompts="),
        ({"strengths": ()}, "strengths is empty"),
        ({"completions_per_prompt": 0}, "completions_per_prompt=0"),
    ],
)
def test_a_proposer_that_cannot_work_is_refused_in_words(settings: dict, message: str) -> None:
    arguments = {"positive": HAPPY, "negative": SAD, "contexts": CONTEXTS, "prompts": ["One day"], **settings}
    with pytest.raises(ValueError, match=message):
        ActivationSteering(**arguments)


def test_a_band_without_a_layer_and_prompts_that_are_missing_are_refused() -> None:
    with pytest.raises(ValueError, match="holds none of the 3 layers"):
        proposer(layer_band=(0.3, 0.4))(tiny(), byte_tokenizer(), 0, 0)
    with pytest.raises(ValueError, match="no prompts"):
        sample_completions(tiny(), byte_tokenizer(), [], seed=0, max_new_tokens=1)
    with pytest.raises(ValueError, match="temperature=-1"):
        sample_completions(tiny(), byte_tokenizer(), ["a"], seed=0, max_new_tokens=1, temperature=-1)
    with pytest.raises(ValueError, match="contexts="):
        persona_direction(tiny(), byte_tokenizer(), HAPPY, SAD, [], [0])


def test_steering_towards_happy_stories_raises_the_margin_of_happy_over_sad_words(data_dir: Path) -> None:
    path = data_dir / "models" / "stories260K"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    contexts = ["One day, Lily went to the park. Tom felt", "Tim had a big red ball. She was very"]
    happy = ["Lily was so happy. She smiled and laughed.", "It was the best day ever. Everyone had fun."]
    sad = ["Lily was so sad. She cried and cried.", "It was the worst day ever. Everyone was scared."]
    direction = persona_direction(model, tokenizer, happy, sad, contexts, layers_in_band(5, (0.65, 0.75)))

    def margin(strength: float) -> float:
        with steer(model, direction, strength):
            words = [" happy", " excited", " glad"], [" sad", " scared", " angry"]
            return sum(answer_log_prob_margin(model, tokenizer, ["Mia felt", "Ben was very"], *words))

    margins = [margin(strength) for strength in (-1.0, 0.0, 1.0, 2.0)]
    assert margins == sorted(margins)
    assert margins[-1] - margins[0] > 1.0
