"""Sampling with noise that all members share."""

import math

import pytest
import torch
from transformers import LogitsProcessorList

from alignkit.es_lora.population import evaluate_population, population
from alignkit.es_lora.sampling import SharedGumbelProcessor, gumbel_noise
from alignkit.tasks.toy import tiny_causal_lm

PAD = 256
IDS = torch.tensor([[10, 20, 30, 40, 50], [PAD, PAD, 60, 70, 80]])
MASK = (IDS != PAD).long()
KEYS = [(0, 0), (1, 0)]


def model():
    return tiny_causal_lm(hidden_size=32).eval()


def adapters_around_a_centre(language_model, sigmas, seed=1):
    """Member p is one centre plus σ_p times noise, alternately + and - the same noise."""
    generator = torch.Generator().manual_seed(seed)
    adapters = {}
    for name, module in language_model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            a = 0.2 * torch.randn(module.in_features, 2, generator=generator)
            b = 0.2 * torch.randn(2, module.out_features, generator=generator)
            noise = torch.randn(len(sigmas) // 2 + 1, 2, module.out_features, generator=generator)
            members = [b + (-1) ** p * sigma * noise[p // 2] for p, sigma in enumerate(sigmas)]
            adapters[name] = (a.repeat(len(sigmas), 1, 1), torch.stack(members))
    return adapters


def sampled(language_model, adapters, *, seed=0, ids=IDS, mask=MASK, keys=KEYS, new_tokens=8, **settings):
    processor = SharedGumbelProcessor(
        seed=seed,
        step=settings.pop("step", 0),
        keys=keys,
        prompt_length=ids.shape[1],
        temperature=settings.pop("temperature", 1.0),
        top_k=settings.pop("top_k", 0),
    )
    return evaluate_population(
        language_model,
        adapters,
        ids,
        mask,
        do_sample=False,
        max_new_tokens=new_tokens,
        logits_processor=LogitsProcessorList([processor]),
        **settings,
    )[:, :, ids.shape[1] :]


def test_gumbel_noise_is_the_quantile_function_of_the_gumbel_distribution_at_the_normals_probability():
    # Φ(0) = 1/2; Φ(-1.6448536) = 0.05; Φ(6) = 1 - 9.8658765e-10, which float32 rounds to 1.
    expected = [-math.log(math.log(2)), -math.log(math.log(20)), -math.log(9.8658765e-10)]
    found = gumbel_noise(torch.tensor([0.0, -1.6448536, 6.0]))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert gumbel_noise(torch.tensor([-6.78, 6.78])).isfinite().all()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "expected"),
    [
        (1.0, 0, 1.0, [0.4, 0.3, 0.2, 0.1]),
        (0.5, 0, 1.0, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (1.0, 2, 1.0, [4 / 7, 3 / 7, 0, 0]),
        (1.0, 0, 0.75, [4 / 9, 3 / 9, 2 / 9, 0]),
    ],
)
def test_tokens_have_the_distribution_of_the_cut_and_tempered_logits(temperature, top_k, top_p, expected):
    n = 4000
    keys = [(prompt, sample) for prompt in range(n // 4) for sample in range(4)]
    processor = SharedGumbelProcessor(
        seed=3, step=1, keys=keys, prompt_length=1, temperature=temperature, top_k=top_k, top_p=top_p
    )
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().repeat(n, 1)
    counts = torch.bincount(processor(torch.zeros(n, 1, dtype=torch.long), logits).argmax(1), minlength=4)
    probabilities = torch.tensor(expected)
    allowed = probabilities > 0
    assert counts[~allowed].sum() == 0
    wanted = n * probabilities[allowed]
    chi_square = ((counts[allowed] - wanted) ** 2 / wanted).sum()
    assert chi_square < 16.3  # the 0.999 quantile at three degrees of freedom


def test_noise_differs_between_rows_positions_steps_and_seeds_and_is_shared_by_members():
    scores = torch.zeros(4, 259)

    def noise(seed=0, step=0, position=0, keys=((0, 0), (1, 0))):
        processor = SharedGumbelProcessor(seed=seed, step=step, keys=list(keys), prompt_length=5)
        return processor(torch.zeros(4, 5 + position, dtype=torch.long), scores)

    first = noise()
    assert torch.equal(first[:2], first[2:])  # two members
    others = [noise(seed=1), noise(step=1), noise(position=1), noise(keys=[(0, 1), (1, 1)]), first.flip(0)]
    for other in others:
        correlation = torch.corrcoef(torch.stack([first[:2].flatten(), other[:2].flatten()]))[0, 1]
        assert correlation.abs() < 4 / math.sqrt(2 * 259)
    assert torch.equal(noise(keys=[(1, 0), (0, 0)]), first.flip(0))  # a row's noise does not depend on its neighbours


def test_identical_members_give_identical_samples_and_near_ones_mostly_equal_tokens():
    language_model = model()
    adapters = adapters_around_a_centre(language_model, [0.0, 0.0, 1e-3, 1.0])
    # An untrained model's logits are almost flat; this temperature makes them matter as much as the noise.
    tokens = sampled(language_model, adapters, temperature=0.1, new_tokens=12)
    assert torch.equal(tokens[0], tokens[1])
    equal = (tokens == tokens[0]).float().mean((1, 2))
    assert equal[2] > 0.7
    assert equal[3] < 0.3
    assert not torch.equal(tokens, sampled(language_model, adapters, temperature=0.1, new_tokens=12, seed=1))


def test_samples_do_not_depend_on_chunks_population_size_padding_or_the_other_prompts():
    language_model = model()
    adapters = adapters_around_a_centre(language_model, [0.0, 0.1, 0.1, 0.2, 0.2])
    whole = sampled(language_model, adapters)
    assert torch.equal(sampled(language_model, adapters, population_chunk_size=2), whole)
    two = {name: (a[1:3], b[1:3]) for name, (a, b) in adapters.items()}
    assert torch.equal(sampled(language_model, two), whole[1:3])
    wider = torch.nn.functional.pad(IDS, (3, 0), value=PAD)
    assert torch.equal(sampled(language_model, adapters, ids=wider, mask=(wider != PAD).long()), whole)
    second = sampled(language_model, adapters, ids=IDS[1:, 2:], mask=MASK[1:, 2:], keys=KEYS[1:])
    assert torch.equal(second, whole[:, 1:])


def test_shared_noise_halves_the_variance_of_a_pairs_difference_at_a_small_sigma():
    language_model = model()
    rows = 200
    keys = [(prompt, 0) for prompt in range(rows)]
    adapters = adapters_around_a_centre(language_model, [0.02, 0.02])
    ids = IDS[:1].repeat(rows, 1)
    # Reward of one token: its id. With independent noise a pair's difference has twice the variance of a reward.
    shared = sampled(
        language_model, adapters, ids=ids, mask=torch.ones_like(ids), keys=keys, new_tokens=1, temperature=0.1
    ).float()
    paired = (shared[0] - shared[1]).var()
    independent = shared[0].var() + shared[1].var()
    assert 0 < paired < 0.5 * independent


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"keys": []}, "at least one row"),
        ({"keys": [(0, 0), (0, 0)]}, "of its own"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_bad_settings_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        SharedGumbelProcessor(**{"seed": 0, "step": 0, "keys": KEYS, "prompt_length": 5, **settings})


def test_rows_that_are_no_multiple_of_the_keys_are_refused():
    processor = SharedGumbelProcessor(seed=0, step=0, keys=KEYS, prompt_length=5)
    with pytest.raises(ValueError, match=r"3 rows.*2 keys"):
        processor(torch.zeros(3, 5, dtype=torch.long), torch.zeros(3, 259))


def test_the_processor_works_in_a_plain_generate_too():
    language_model = model()
    adapters = adapters_around_a_centre(language_model, [0.1])
    processor = SharedGumbelProcessor(seed=0, step=0, keys=KEYS, prompt_length=5)
    with population(language_model, adapters) as base:
        tokens = base.generate(
            IDS,
            attention_mask=MASK,
            do_sample=False,
            max_new_tokens=8,
            logits_processor=LogitsProcessorList([processor]),
        )
    expected = sampled(language_model, adapters)[0]
    assert torch.equal(tokens[:, 5:], expected)
