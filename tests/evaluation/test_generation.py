"""Completions of many prompts."""

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from alignkit.dpo.truncation import cut_pair
from alignkit.evaluation.decoding import InverseSampling, StopStrings, cut_at_stop
from alignkit.evaluation.generation import encode_prompt, generate_completions, left_padded
from alignkit.tasks.toy import CHAT_TEMPLATE, byte_tokenizer, tiny_causal_lm

PROMPTS = ["a", "the sea was", "Warm a kettle, stir in two spoons of salt", "Wind north, four knots, sea calm.", "b c"]


@pytest.fixture
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def model():
    # Wider weights than a fresh model has, so that logits differ and no two are equal within rounding.
    model = tiny_causal_lm(seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model


@pytest.fixture
def stories(data_dir):
    path = str(data_dir / "models" / "stories260K")
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def test_a_real_model_tells_its_published_story(stories, data_dir):
    told = generate_completions(*stories, [""], max_new_tokens=256)
    published = (data_dir / "models" / "stories260K" / "golden_greedy.txt").read_text(encoding="utf-8")
    assert told[0].strip() == published.strip()


def test_greedy_completions_of_a_real_model_are_the_same_for_every_batch_size_and_in_the_callers_order(stories):
    prompts = [
        "Once upon a time",
        "Lily saw a big red ball. She",
        "Tom",
        "One day, a dog and a cat went to the park and",
    ]
    one_by_one = [generate_completions(*stories, [prompt], max_new_tokens=40)[0] for prompt in prompts]
    assert len(set(one_by_one)) == 4
    for batch_size in (2, 3, 4):
        assert generate_completions(*stories, prompts, max_new_tokens=40, batch_size=batch_size) == one_by_one
    assert generate_completions(*stories, prompts[::-1], max_new_tokens=40) == one_by_one[::-1]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_greedy_completions_are_the_largest_logits_one_after_another(model, tokenizer, batch_size):
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        while ids.shape[1] < start + 12 and ids[0, -1] != tokenizer.eos_token_id:
            with torch.no_grad():
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
        expected.append(tokenizer.decode(ids[0, start:], skip_special_tokens=True))
    assert generate_completions(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=batch_size) == expected
    assert len(set(expected)) == len(PROMPTS)


def test_samples_depend_on_seed_and_prompt_alone_and_leave_the_random_state_as_it_was(model, tokenizer):
    settings = {"max_new_tokens": 12, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    state = torch.get_rng_state()
    samples = generate_completions(model, tokenizer, PROMPTS, seed=3, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    for batch_size in (1, 2):
        assert generate_completions(model, tokenizer, PROMPTS, seed=3, batch_size=batch_size, **settings) == samples
    assert generate_completions(model, tokenizer, PROMPTS, seed=4, **settings) != samples
    assert samples != generate_completions(model, tokenizer, PROMPTS, max_new_tokens=12)


def test_two_samples_of_the_same_prompt_differ(model, tokenizer):
    first, second = generate_completions(model, tokenizer, ["a", "a"], max_new_tokens=12, do_sample=True)
    assert first != second


def test_tokens_are_sampled_as_often_as_the_softmax_says():
    rows, temperature = 4000, 0.5
    logits = torch.tensor([0.0, -torch.inf, 1.0, -0.5])
    sampler = InverseSampling(7, range(rows), 3, 2, temperature, 1.0)
    scores = sampler(torch.zeros(rows, 4, dtype=torch.long), logits.expand(rows, 4))
    shares = (scores == 0).float().mean(0)
    expected = (logits / temperature).softmax(-1)
    assert scores.argmax(-1).bincount(minlength=4)[1] == 0
    # Five standard errors of a share of 4,000.
    assert (shares - expected).abs().max() < 5 * 0.5 / rows**0.5


def test_top_p_leaves_out_the_tail():
    rows = 500
    scores = InverseSampling(0, range(rows), 0, 1, 1.0, 0.6)(
        torch.zeros(rows, 0, dtype=torch.long), torch.tensor([0.5, 0.3, 0.2]).log().expand(rows, 3)
    )
    counts = scores.argmax(-1).bincount(minlength=3)
    assert counts[2] == 0 and counts[1] > 0


def test_every_module_is_in_the_mode_that_it_was_in(model, tokenizer):
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    seen = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda module, _: seen.append(module.training))
    generate_completions(model, tokenizer, ["a"], max_new_tokens=2)
    handle.remove()
    assert not any(seen) and seen
    assert [module.training for module in model.modules()] == modes


def test_modes_and_settings_come_back_after_an_error(model, tokenizer):
    model.train()
    own = model.generation_config
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight[:, :3])
    with pytest.raises(RuntimeError, match="shapes"):
        generate_completions(model, tokenizer, ["a"], max_new_tokens=2)
    assert model.training and model.lm_head.training and model.generation_config is own


def test_what_the_models_own_generation_config_asks_for_does_not_act(model, tokenizer):
    greedy = generate_completions(model, tokenizer, PROMPTS, max_new_tokens=12)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=3.0, max_length=9, min_new_tokens=11, num_beams=2
    )
    assert generate_completions(model, tokenizer, PROMPTS, max_new_tokens=12) == greedy
    assert model.generation_config.repetition_penalty == 3.0


def test_the_models_own_end_tokens_end_a_completion(stories):
    model, tokenizer = stories
    whole = generate_completions(model, tokenizer, ["Once upon a time"], max_new_tokens=60)[0]
    assert model.generation_config.eos_token_id != tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=[tokenizer.convert_tokens_to_ids(".")])
    [ended] = generate_completions(model, tokenizer, ["Once upon a time"], max_new_tokens=60)
    assert whole.startswith(ended + ".") and "." not in ended


def test_a_peft_model_generates_with_its_adapter(model, tokenizer):
    before = generate_completions(model, tokenizer, PROMPTS, max_new_tokens=12)
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    with_adapter = generate_completions(peft_model, tokenizer, PROMPTS, max_new_tokens=12)
    assert with_adapter != before
    with peft_model.disable_adapter():
        assert generate_completions(peft_model, tokenizer, PROMPTS, max_new_tokens=12) == before
    merged = peft_model.merge_and_unload()
    assert generate_completions(merged, tokenizer, PROMPTS, max_new_tokens=12) == with_adapter


def test_a_stop_string_is_cut_off_with_what_follows_but_not_before_the_first_word():
    assert cut_at_stop("\n\n12\n\nQuestion: x", ["\n\n", "Question"]) == "\n\n12"
    assert cut_at_stop("12 Question", ["\n\n", " Question"]) == "12"
    assert cut_at_stop("12", ["\n\n"]) == "12"
    assert cut_at_stop("12", []) == "12"


def test_rows_end_at_their_own_stop_string_in_the_completion_alone(tokenizer):
    prompts, completions = ["a##b", "ab", "abcdef"], ["c", "c##", "#"]
    ids, _ = left_padded([tokenizer(prompt)["input_ids"] for prompt in prompts], tokenizer.pad_token_id)
    written = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in completions]
    longest = max(map(len, written))
    rows = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in written])
    stops = StopStrings(tokenizer, ["##"], ids.shape[1])
    assert stops(torch.cat([ids, rows], 1), None).tolist() == [False, True, False]


def test_generation_stops_when_all_rows_have_their_stop_string(model, tokenizer):
    whole = generate_completions(model, tokenizer, ["a"], max_new_tokens=30)[0]
    stop = whole[4:6]
    steps = []
    handle = model.register_forward_hook(lambda *_: steps.append(1))
    stopped = generate_completions(model, tokenizer, ["a"], max_new_tokens=30, stop_strings=[stop])[0]
    handle.remove()
    assert stopped == whole[: whole.index(stop)]
    assert len(steps) < 30


@pytest.mark.parametrize("truncation", ["keep_end", "keep_start"])
def test_long_prompts_are_cut_as_in_training_and_counted(model, tokenizer, truncation, caplog):
    seen = []
    handle = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    prompts = ["abcdefgh", "xy"]
    with caplog.at_level(logging.WARNING, "alignkit.evaluation.generation"):
        generate_completions(
            model, tokenizer, prompts, max_new_tokens=1, max_prompt_tokens=5, prompt_truncation=truncation
        )
    handle.remove()
    ids = tokenizer(prompts[0])["input_ids"]
    assert seen[0][0] == cut_pair(ids, [1], [2], max_prompt_length=5, prompt_truncation=truncation).prompt
    assert "1 of 2 prompts were cut to 5 tokens" in caplog.text


def test_messages_go_through_the_chat_template(model):
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    messages = [{"role": "user", "content": "hello"}]
    as_text = "user: hello\nassistant: "
    assert encode_prompt(tokenizer, messages) == tokenizer(as_text)["input_ids"]
    chat, plain = generate_completions(model, tokenizer, [messages, as_text], max_new_tokens=6)
    assert chat == plain


def test_a_prompt_has_no_end_token_behind_it(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 257), ("<eos>", 258)]
    )
    assert tokenizer("a")["input_ids"] == [257, 97, 258]
    assert encode_prompt(tokenizer, "a") == [257, 97]


def test_no_prompts_have_no_completions(model, tokenizer):
    assert generate_completions(model, tokenizer, [], max_new_tokens=3) == []


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens=0"),
        ({"prompt_truncation": "middle"}, "'middle' must be 'keep_end' or 'keep_start'"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0; leave do_sample out"),
        ({"top_p": 0.0}, "top_p=0.0"),
    ],
)
def test_a_setting_out_of_range_is_an_error(model, tokenizer, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        generate_completions(model, tokenizer, ["a"], **{"max_new_tokens": 1, **settings})


def test_messages_without_a_chat_template_and_a_prompt_without_tokens_are_errors(model, tokenizer):
    with pytest.raises(ValueError, match="no chat template"):
        generate_completions(model, tokenizer, [[{"role": "user", "content": "a"}]], max_new_tokens=1)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        generate_completions(model, tokenizer, ["a", ""], max_new_tokens=1)
