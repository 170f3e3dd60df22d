"""A step of the trainer is the update that its settings name, and nothing else moves."""

import hashlib
import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import TrainerCallback

from alignkit.es_lora.fitness import shape_fitness
from alignkit.es_lora.noise import member_noise
from alignkit.tasks.toy import byte_tokenizer
from tests.es_lora.conftest import LORA, lively_lm, make_es_trainer, mean_code, trained


def hash_of_base(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if "lora_" not in name:
            digest.update(name.encode() + weight.numpy().tobytes())
    return digest.hexdigest()


def seen_prompts(trainer) -> list[list[str]]:
    """Prompts of each step, from the history."""
    lines = [json.loads(line) for line in (trainer._folder / "results.jsonl").read_text().splitlines()]
    return [[trainer.train_dataset[i]["prompt"] for i in line["prompts"]] for line in lines if "fitness" in line]


def greedy(model: PeftModel, texts: list[str], tokenizer) -> list[str]:
    """Completions one at a time, by PEFT's own forward."""
    found = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**ids, max_new_tokens=6, do_sample=False, use_cache=True)
        found.append(tokenizer.decode(tokens[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return found


@pytest.mark.parametrize("perturb", ["B", "both"])
def test_two_steps_equal_a_hand_written_loop_over_members(make_trainer, perturb):
    settings = {"sigma": 0.3, "learning_rate": 0.2, "temperature": 0.0, "seed": 3}
    trainer = make_trainer(perturb=perturb, **settings)
    before = trained(trainer)
    trainer.train()

    model, tokenizer = get_peft_model(lively_lm(), LoraConfig(**LORA)).eval(), byte_tokenizer()
    own = dict(model.named_parameters())
    weights = {name: before[name].clone() for name in before}
    moving = [name for name in weights if perturb == "both" or "lora_B" in name]

    def noise(step: int, member: int, name: str) -> torch.Tensor:
        key = name.removeprefix("base_model.model.").removesuffix(".default.weight")
        sign = 1 if member % 2 == 0 else -1
        return sign * member_noise(3, step, member // 2, key, weights[name].shape)

    for step, texts in enumerate(seen_prompts(trainer)):
        fitness = []
        for member in range(6):
            with torch.no_grad():
                for name in weights:
                    own[name].copy_(weights[name] + (0.3 * noise(step, member, name) if name in moving else 0))
            fitness.append(sum(mean_code(greedy(model, texts, tokenizer))) / len(texts))
        mean = sum(fitness) / 6
        spread = math.sqrt(sum((f - mean) ** 2 for f in fitness) / 6)
        assert spread > 0
        for name in moving:
            direction = sum((f - mean) / spread * noise(step, member, name) for member, f in enumerate(fitness))
            weights[name] += 0.2 * direction / 6
    for name, found in trained(trainer).items():
        torch.testing.assert_close(found, weights[name], rtol=0, atol=1e-6)
    assert any(not torch.equal(weights[name], before[name]) for name in moving)


def test_low_rank_noise_moves_the_weight_by_the_weighted_sum_of_products(make_trainer):
    trainer = make_trainer(perturb="lowrank", max_steps=1, sigma=0.05, learning_rate=0.1)
    base = {name: w.clone() for name, w in trainer.model.named_parameters() if "base_layer" in name}
    trainer.train()
    fitness = torch.tensor(json.loads((trainer._folder / "results.jsonl").read_text().splitlines()[0])["fitness"])
    z = (fitness - fitness.mean()) / fitness.std(correction=0)
    for name, layer in trainer.centre.layers.items():
        a, b = trainer.centre.factors(name)
        rank, width = 2, (layer.in_features, layer.out_features)
        assert len(a) == min(width)
        expected = torch.zeros(layer.out_features, layer.in_features)
        for member in range(6):
            left = member_noise(42, 0, member // 2, f"{name}.noise_A", (layer.in_features, rank))
            right = member_noise(42, 0, member // 2, f"{name}.noise_B", (rank, layer.out_features))
            sign = 1 - 2 * (member % 2)
            expected += 0.1 / 6 * z[member] * sign * (left @ right).T / math.sqrt(rank)
        torch.testing.assert_close((b @ a).detach(), expected, rtol=0, atol=1e-6)
    assert all(torch.equal(w, base[name]) for name, w in trainer.model.named_parameters() if name in base)


def test_loss_in_the_log_is_minus_the_mean_fitness(make_trainer):
    trainer = make_trainer()
    trainer.train()
    records = [json.loads(line) for line in (trainer._folder / "results.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx([-sum(record["fitness"]) / 6 for record in records], rel=1e-6)


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_a_step_without_variance_moves_nothing_and_is_counted(make_trainer, caplog, optim):
    def late_constant(completions, trainer_state, **columns):
        return mean_code(completions) if trainer_state.global_step == 0 else [1.0] * len(completions)

    weights = []

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            weights.append(trained(trainer))

    trainer = make_trainer(reward_funcs=late_constant, optim=optim, max_steps=3, weight_decay=0.1, callbacks=[Keep()])
    before = trained(trainer)
    trainer.train()
    assert any(not torch.equal(weights[0][name], before[name]) for name in before)
    for name in before:
        assert torch.equal(weights[1][name], weights[0][name]) and torch.equal(weights[2][name], weights[0][name])
    assert "2 such steps so far" in caplog.text
    assert [e["frac_no_variance"] for e in trainer.state.log_history if "loss" in e] == [0.0, 1.0, 1.0]


def test_a_member_that_fails_gets_the_lowest_fitness_and_is_counted(make_trainer):
    def first_fails(completions, **columns):
        values = mean_code(completions)
        values[2] = math.nan  # the centre's two rows come first, then member 0
        return values

    trainer = make_trainer(reward_funcs=first_fails, max_steps=1)
    trainer.train()
    record = json.loads((trainer._folder / "results.jsonl").read_text().splitlines()[0])
    assert record["fitness"][0] is None and record["failed"] == 1
    assert all(value is not None for value in record["fitness"][1:])
    assert next(e for e in trainer.state.log_history if "loss" in e)["failed_members"] == 1


def test_base_weights_keep_their_hash(make_trainer):
    trainer = make_trainer(eval_dataset=None, max_steps=3)
    before = hash_of_base(trainer.model)
    trainer.train()
    assert hash_of_base(trainer.model) == before


@pytest.mark.parametrize("perturb", ["both", "lowrank"])
def test_a_checkpoint_is_a_plain_peft_adapter_with_equal_logits(make_trainer, tokenizer, perturb):
    trainer = make_trainer(perturb=perturb, save_strategy="steps", save_steps=2, learning_rate=0.5)
    trainer.train()
    loaded = PeftModel.from_pretrained(lively_lm(), str(trainer._folder / "checkpoint-2")).eval()
    ids = tokenizer("a prompt", return_tensors="pt")
    with torch.no_grad():
        expected = trainer.model.eval()(**ids).logits
        base = lively_lm()(**ids).logits
        torch.testing.assert_close(loaded(**ids).logits, expected, rtol=0, atol=0)
    assert not torch.equal(expected, base)


def test_anchor_decay_adds_the_pull_to_the_initial_weights(make_trainer):
    seen = []

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            seen.append({name: (p.detach().clone(), p.grad.clone()) for name, p in trainer.centre.trained().items()})

    trainer = make_trainer(anchor_decay=0.5, learning_rate=0.1, callbacks=[Keep()])
    start = {name: p.detach().clone() for name, p in trainer.centre.trained().items()}
    trainer.train()
    record = json.loads((trainer._folder / "results.jsonl").read_text().splitlines()[1])
    shaped = shape_fitness(torch.tensor(record["fitness"], dtype=torch.float64), "z_score")
    sigmas = dict.fromkeys(trainer.centre.layers, 0.2)
    estimate = trainer.centre.gradients(shaped, sigmas, seed=42, step=1, antithetic=True, divide_by_sigma=False)
    assert any(not torch.equal(weight, start[name]) for name, (weight, _) in seen[1].items())
    for name, (weight, gradient) in seen[1].items():
        torch.testing.assert_close(gradient, estimate[name] + 0.5 * (weight - start[name]), rtol=0, atol=1e-7)


def test_every_row_is_seen_equally_often(make_trainer):
    trainer = make_trainer(max_steps=9, prompts_per_step=3, population_size=2, max_completion_length=2)
    trainer.train()
    seen = [text for texts in seen_prompts(trainer) for text in texts]
    counts = [seen.count(row["prompt"]) for row in trainer.train_dataset]
    assert sum(counts) == 27 and max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    "asked",
    [
        {"do_sample": True, "top_k": 3, "temperature": 0.1, "repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"max_time": 0.0},
        {"return_dict_in_generate": True},
        {"num_return_sequences": 2, "num_beams": 2},
    ],
)
def test_the_models_own_generation_config_does_not_act(tmp_path, asked):
    settings = {"temperature": 0.0, "max_steps": 1}
    model = lively_lm()
    for name, value in asked.items():
        setattr(model.generation_config, name, value)
    own = model.generation_config
    for name, base in (("plain", lively_lm()), ("asking", model)):
        make_es_trainer(tmp_path / name, model=base, **settings).train()
    assert (tmp_path / "plain/results.jsonl").read_bytes() == (tmp_path / "asking/results.jsonl").read_bytes()
    assert model.generation_config is own
