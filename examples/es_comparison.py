"""Ways to improve a reward from completions alone, each with the same number of them: what the ES examples compare.

The prior update is the one whose runs stood still; see `prior_update`.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from alignkit import ESLoRAConfig, ESLoRATrainer
from alignkit.es_lora.centre import Centre
from alignkit.es_lora.population import evaluate_population
from alignkit.es_lora.sampling import SharedGumbelProcessor
from alignkit.es_lora.sigmas import module_sigmas

Row = dict[str, float]


@dataclass(frozen=True)
class Task:
    """What all methods share."""

    model: str
    reward: Callable[..., list[float]]
    train: Dataset
    held_out: Dataset
    peft_config: LoraConfig
    completions: int  # in all
    evaluations: int  # of the held-out prompts, while training
    args: ESLoRAConfig  # lengths, temperature, device; and what concerns ES

    @property
    def per_step(self) -> int:
        """Completions of a step. The centre's, which ES uses to report alone, count too."""
        args = self.args
        return (args.population_size + 1) * args.prompts_per_step * args.rollouts_per_prompt

    def adapted(self, seed: int) -> PeftModel:
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_pretrained(self.model).to(self.args.device)
        return get_peft_model(model, self.peft_config)

    def encoded(self, prompts: list[str]) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(self.model, padding_side="left")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return tokenizer, tokenizer(prompts, return_tensors="pt", padding=True).to(self.args.device)


class HeldOut(TrainerCallback):
    """Rewards of an adapter on the held-out prompts as it is trained; the time that this takes does not count.

    Args:
        task ([`Task`]): whose prompts.
        per_step (`int`): completions of a training step.
    """

    def __init__(self, task: Task, per_step: int):
        self._task = task
        self._per_step = per_step
        self._measuring = [0.0, 0.0]
        self._started = [time.perf_counter(), time.process_time()]
        steps = task.completions // per_step
        self.steps = max(steps, 1)
        self._at = {round(self.steps * part / task.evaluations) for part in range(task.evaluations + 1)}
        self.rows: list[Row] = []
        self.texts: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.see(0, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.see(state.global_step, kwargs["model"])

    def see(self, step: int, model: Any) -> None:
        """Evaluate after a step, if it is one of those."""
        if step not in self._at:
            return
        begun = [time.perf_counter(), time.process_time()]
        spent = [b - a - m for b, a, m in zip(begun, self._started, self._measuring, strict=True)]
        greedy, self.texts = self._reward(model, sample=False)
        sampled, _ = self._reward(model, sample=True)
        row = {"completions": step * self._per_step, "greedy": greedy, "sampled": sampled}
        self.rows.append(row | {"seconds": spent[0], "cpu_seconds": spent[1]})
        ended = [time.perf_counter(), time.process_time()]
        self._measuring = [m + b - a for m, a, b in zip(self._measuring, begun, ended, strict=True)]

    def _reward(self, model: Any, *, sample: bool) -> tuple[float, list[str]]:
        """Mean over the prompts, of the greedy completion or of one that is drawn, with the same luck at any time."""
        task, was_training = self._task, model.training
        prompts = list(task.held_out["prompt"])
        tokenizer, encoded = task.encoded(prompts)
        model.eval()
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            tokens = model.generate(
                **encoded, max_new_tokens=task.args.max_completion_length, do_sample=sample, temperature=1.0, top_k=0
            )
        model.train(was_training)
        texts = tokenizer.batch_decode(tokens[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        rewards = task.reward(prompts=prompts, completions=texts)
        return sum(rewards) / len(rewards), texts


def evolution(task: Task, seed: int, folder: Path, **settings: Any) -> HeldOut:
    """`ESLoRATrainer`. The folder gets the adapter, a PEFT one, and the history of the run."""
    seen = HeldOut(task, task.per_step)
    args = replace(task.args, output_dir=str(folder), seed=seed, max_steps=seen.steps, **settings)
    trainer = ESLoRATrainer(
        task.model, task.reward, args=args, train_dataset=task.train, peft_config=task.peft_config, callbacks=[seen]
    )
    trainer.train()
    trainer.save_model()
    return seen


def grpo(task: Task, seed: int, folder: Path, **settings: Any) -> HeldOut:
    """TRL's `GRPOTrainer` on the same reward function, LoRA, temperature and lengths."""
    settings = {"num_generations": 8, "per_device_train_batch_size": 256, "lr_scheduler_type": "constant"} | settings
    seen = HeldOut(task, settings["per_device_train_batch_size"])
    args = GRPOConfig(
        output_dir=str(folder),
        seed=seed,
        max_steps=seen.steps,
        max_completion_length=task.args.max_completion_length,
        temperature=task.args.temperature or 1.0,
        gradient_checkpointing=False,
        use_cpu=task.args.use_cpu,
        bf16=not task.args.use_cpu,
        save_strategy="no",
        report_to="none",
        logging_steps=1000,
        disable_tqdm=True,
        **settings,
    )
    torch.manual_seed(seed)  # of the adapter
    tokenizer, _ = task.encoded(["a"])
    trainer = GRPOTrainer(
        task.model,
        task.reward,
        args=args,
        train_dataset=task.train,
        processing_class=tokenizer,
        peft_config=task.peft_config,
        callbacks=[seen],
    )
    trainer.train()
    return seen


def random_search(task: Task, seed: int, folder: Path, **settings: Any) -> HeldOut:
    """Members drawn around the start with the noise of ES; the one furthest above the start on its prompts is kept."""
    args, model = replace(task.args, **settings), task.adapted(seed)
    centre, seen = Centre(model, args.perturb), HeldOut(task, task.per_step)
    sigmas: dict[str, float] = {}
    start = {name: tuple(factor.detach().clone() for factor in centre.factors(name)) for name in centre.layers}
    best, lead = start, 0.0
    seen.see(0, model)
    for step, prompts in enumerate(_batches(task, seed, seen.steps)):
        _, encoded = task.encoded(prompts)
        if not sigmas:
            sigmas = module_sigmas(centre, model, args.sigma_mode, args.sigma, **encoded)
        numbers = [*range(args.population_size), None]
        members = centre.members(numbers, sigmas, seed=seed, step=step, antithetic=False)
        fitness = _fitness(task, model, members, prompts, seed=seed, step=step, temperature=args.temperature)
        above = fitness[:-1] - fitness[-1]
        if above.max() > lead:
            number, lead = int(above.argmax()), float(above.max())
            best = {name: (a[number].T, b[number].T / centre.scaling(name)) for name, (a, b) in members.items()}
        _put(centre, best)
        seen.see(step + 1, model)
        _put(centre, start)
    return seen


def prior_update(
    task: Task, seed: int, folder: Path, *, perturb_scale: float, init_scale: float = 1.0, learning_rate: float = 0.01
) -> HeldOut:
    """What an earlier system did: from A = B = 0, without a centre that is evaluated, and with greedy members.

        W_pg = base_g + c_g 0.1 mean|W| ε,   base_g+1 = base_g + (learning_rate / P) Σ_p z_p W_pg

    for A and B apart, z being the z-scores of the rewards, mean|W| that of the layer's matrices, c_g `init_scale` in
    the first generation and `perturb_scale` later. To first order B A does not depend on A or B at 0, so that there is
    nothing for the z-scores to find.
    """
    model = task.adapted(seed)
    centre, n = Centre(model, "both"), task.args.population_size
    seen = HeldOut(task, n * task.args.prompts_per_step)
    base = {name: [torch.zeros_like(factor) for factor in centre.factors(name)] for name in centre.layers}
    size = _mean_weight_of_layers(centre)
    _put(centre, base)
    seen.see(0, model)
    for generation, prompts in enumerate(_batches(task, seed, seen.steps)):
        scale = 0.1 * (perturb_scale if generation else init_scale)
        random = torch.Generator().manual_seed(1000 * generation + seed)
        members = {
            name: [
                factor + scale * size[name] * torch.randn(n, *factor.shape, generator=random).to(factor)
                for factor in factors
            ]
            for name, factors in base.items()
        }
        adapters = {name: (a.mT, b.mT * centre.scaling(name)) for name, (a, b) in members.items()}
        fitness = _fitness(task, model, adapters, prompts, seed=seed, step=generation, temperature=0.0)
        spread = fitness.std(correction=0)
        z = (fitness - fitness.mean()) / spread if spread > 1e-8 else torch.zeros(n)
        for name, factors in base.items():
            for factor, drawn in zip(factors, members[name], strict=True):
                factor += learning_rate / n * torch.einsum("p,pij->ij", z.to(drawn), drawn)
        _put(centre, base)
        seen.see(generation + 1, model)
    return seen


def _batches(task: Task, seed: int, steps: int) -> Iterator[list[str]]:
    """Prompts of each step: the training set in a random order, again and again."""
    prompts, random, queue = list(task.train["prompt"]), torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        while len(queue) < task.args.prompts_per_step:
            queue += torch.randperm(len(prompts), generator=random).tolist()
        yield [prompts[queue.pop(0)] for _ in range(task.args.prompts_per_step)]


def _fitness(
    task: Task, model: PeftModel, adapters: Any, prompts: list[str], *, seed: int, step: int, temperature: float
) -> Tensor:
    """Mean reward (P,) of each member."""
    tokenizer, encoded = task.encoded(prompts)
    length = encoded["input_ids"].shape[1]
    keys = [(place, 0) for place in range(len(prompts))]
    sampling = {"seed": seed, "step": step, "keys": keys, "prompt_length": length}
    tokens = evaluate_population(
        model,
        adapters,
        **encoded,
        max_new_tokens=task.args.max_completion_length,
        do_sample=False,
        logits_processor=[SharedGumbelProcessor(**sampling, temperature=temperature)] if temperature else [],
    )
    texts = tokenizer.batch_decode(tokens[:, :, length:].flatten(0, 1), skip_special_tokens=True)
    rewards = task.reward(prompts=prompts * len(tokens), completions=texts)
    return torch.tensor(rewards, dtype=torch.float64).view(len(tokens), -1).mean(1)


def _mean_weight_of_layers(centre: Centre) -> dict[str, float]:
    """Of each module: the mean over the matrices of its layer of their mean |W|."""
    sizes = {name: layer.get_base_layer().weight.abs().mean().item() for name, layer in centre.layers.items()}
    layers = {name: re.sub(r"(\.\d+\.).*", r"\1", name) for name in sizes}
    found = {}
    for name in sizes:
        of_layer = [size for other, size in sizes.items() if layers[other] == layers[name]]
        found[name] = sum(of_layer) / len(of_layer)
    return found


def _put(centre: Centre, factors: Any) -> None:
    """Write A (R, H) and B (O, R) of every module into the adapter."""
    with torch.no_grad():
        for name, (a, b) in factors.items():
            for parameter, value in zip(centre.factors(name), (a, b), strict=True):
                parameter.copy_(value)
