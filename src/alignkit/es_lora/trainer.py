"""`ESLoRATrainer`: the `Trainer` with a gradient that comes from a population instead of from autograd.

How this differs from ES at Scale (Qiu et al. 2025) and EGGROLL (Sarkar et al. 2025), and why:

1. `training_step` writes the estimate into `param.grad`. Everything after it is the `Trainer`'s, however it is set.
2. Noise lives on a float32 adapter and is drawn again from its key. Base weights are never written: to perturb and
   restore them in half precision loses most of a step.
3. The centre is a member of every step and is what evaluations evaluate. The best member of a step is the luckiest.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object
from peft import LoraConfig, PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerState
from transformers.trainer_utils import EvalLoopOutput

from alignkit._compat import shown_to_parent
from alignkit.es_lora.adapters import add_adapter, end_and_pad_tokens, load_base, longest_prompt
from alignkit.es_lora.backends import BackendSettings, make_backend
from alignkit.es_lora.centre import Centre
from alignkit.es_lora.checkpoints import load_state, save_state
from alignkit.es_lora.config import ESLoRAConfig
from alignkit.es_lora.evaluation import evaluate_centre, show_in_progress_bar
from alignkit.es_lora.fitness import shape_fitness
from alignkit.es_lora.history import HISTORY_FILE, History
from alignkit.es_lora.outcome import step_outcome
from alignkit.es_lora.population_step import PopulationStep
from alignkit.es_lora.prompts import PromptLoader, PromptReader, PromptSequence, StepPlaces
from alignkit.es_lora.records import RunRecord
from alignkit.es_lora.report import write_report
from alignkit.es_lora.rewards import RewardFunctions
from alignkit.es_lora.rollout import Rollout
from alignkit.es_lora.step_metrics import mean_of_each
from alignkit.es_lora.timing import Stopwatch, write_breakdown
from alignkit.es_lora.update import Update, UpdateSettings
from alignkit.reliability import NonFiniteError
from alignkit.reliability.checkpoints import TRAINER_STATE
from alignkit.reliability.process_count import check_process_count
from alignkit.reliability.trainer import ReliableTraining


class ESLoRATrainer(ReliableTraining, Trainer):
    r"""
    Trainer for evolution strategies on LoRA weights, with any reward and without gradients of the model.

    Example:

    ```python
    >>> from alignkit import ESLoRAConfig, ESLoRATrainer

    >>> trainer = ESLoRATrainer(
    ...     model="Qwen/Qwen2.5-0.5B-Instruct",
    ...     reward_funcs=lambda completions, **columns: [-len(completion) for completion in completions],
    ...     args=ESLoRAConfig(population_size=30, prompts_per_step=8),
    ...     train_dataset=dataset,  # prompt
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Name or path of a causal language model, the model, quantised or not, or one with a LoRA to go on from.
        reward_funcs (`Callable` or `list[Callable]`):
            Reward functions as [`~trl.GRPOTrainer`] takes them; see [`alignkit.es_lora.rewards`].
        args ([`ESLoRAConfig`], *optional*):
            Configuration.
        train_dataset, eval_dataset ([`~datasets.Dataset`], the second *optional* and possibly a dict of them):
            Rows with `prompt`, text or messages; reward functions get the other columns.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer, by default that of the model.
        peft_config ([`~peft.LoraConfig`], *optional*):
            LoRA, by default of rank 8 on all linear modules.
        callbacks, optimizers:
            As in [`~transformers.Trainer`].

    Attributes:
        centre ([`Centre`]): the trained adapter.
        stopwatch ([`Stopwatch`]): seconds of each phase so far.

    Raises:
        ValueError: bad data or settings, with the value and the fix.
    """

    args: ESLoRAConfig
    model: Any  # a PeftModel, whose typed interface lacks the model's
    processing_class: Any  # a tokenizer

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: Any,
        args: ESLoRAConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: LoraConfig | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ):
        self.stopwatch = Stopwatch()
        name = model if isinstance(model, str) else model.config._name_or_path
        args = args or ESLoRAConfig(f"{name.split('/')[-1]}-ESLoRA")
        check_process_count(args.device, args.world_size)
        self.rewards = RewardFunctions(reward_funcs, args.reward_weights, args.reward_timeout_s)
        model_init: Any = args.model_init_kwargs or {}
        base = load_base(model, model_init) if isinstance(model, str) else model
        adapted, noise_rank = add_adapter(base, peft_config, perturb=args.perturb, seed=args.seed)
        self.centre = Centre(adapted, args.perturb, noise_rank)
        tokenizer = processing_class or AutoTokenizer.from_pretrained(name)
        end_tokens, self._pad_token = end_and_pad_tokens(adapted, tokenizer)
        with shown_to_parent(args, enable_jit_checkpoint=False):
            super().__init__(
                model=adapted,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=tokenizer,
                callbacks=callbacks,
                optimizers=optimizers,
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("FSDP and DeepSpeed shard the model; start the ranks without them")
        for factor in self.centre.all_factors():
            factor.data = broadcast(factor.data)
        template: Any = args.chat_template_kwargs
        longest = longest_prompt(adapted, args.max_completion_length)
        n_embeddings = adapted.get_input_embeddings().num_embeddings
        self._reader = PromptReader(tokenizer, longest, n_embeddings, template, args.eval_prompts, args.seed)
        self._train_prompts = self._reader.read(train_dataset, "train_dataset")
        self._eval_prompts = self._reader.evaluations(eval_dataset)
        self._update = Update(self.centre, _settings(UpdateSettings, args))
        settings, prompt = _settings(BackendSettings, args), self._train_prompts.at(0, 0).ids
        self._rollout = Rollout(
            make_backend(settings, adapted, self.centre, prompt, end_tokens, self._pad_token),
            self.rewards,
            tokenizer,
            end_tokens=end_tokens,
            stopwatch=self.stopwatch,
            trainer_state=lambda: self.state,
        )
        self._step = PopulationStep(args.population_size, self.accelerator)
        self._folder = Path(str(args.output_dir))
        history = History(self._folder / HISTORY_FILE if args.should_save else None)
        self._record = RunRecord(history, self.rewards.names, args.completions_steps)
        self._evaluated_at = -1
        self._is_recording = False  # evaluations in the history: while training
        self.stopwatch.stop()

    # ---- Data ----

    def get_train_dataloader(self) -> DataLoader:
        args = self.args
        places = StepPlaces(len(self._train_prompts), args.prompts_per_step, args.gradient_accumulation_steps)
        return PromptLoader(PromptSequence(self._train_prompts, args.seed), places)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        if eval_dataset is None and not self._eval_prompts:
            raise ValueError("there is no eval_dataset; give one to the trainer or to evaluate()")
        is_own = eval_dataset is None or isinstance(eval_dataset, str)
        prompts: Any = self._eval_prompts[eval_dataset or ""] if is_own else self._reader.evaluation(eval_dataset)
        return DataLoader(prompts, batch_size=self.args.eval_batch_size, collate_fn=list)

    def get_total_train_batch_size(self, args: Any) -> int:
        return args.prompts_per_step  # all ranks see them

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the Trainer's formula is for a backward pass over `inputs`

    # ---- Training ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        with self.stopwatch.during("setup"):
            self._is_recording = True
            output = super().train(resume_from_checkpoint, *args, **kwargs)
            is_new = self.args.load_best_model_at_end or self._evaluated_at != self.state.global_step
            if self._eval_prompts and is_new:  # the weights have not been evaluated
                self.evaluate()
            self._is_recording = False
            if self.args.should_save:
                write_report(self._folder, self.stopwatch, self.state.global_step)
        return output

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        self.centre.train_what_is_perturbed(self.model)  # PEFT makes all of an adapter trainable when it loads one
        return super().create_optimizer(model)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Evaluate the population on a micro-batch of prompts; on the last of a step write the estimate."""
        args, step, now = self.args, self._step, (self.state.global_step, self.state.max_steps)
        if not step.adapters:
            self.stopwatch.enter("noise")
            step.adapters = self._update.members(step.own, *now)
        rollouts = self._rollout.run(
            step.own,
            step.adapters,
            inputs,
            step=self.state.global_step,
            rollouts=args.rollouts_per_prompt,
            max_completion_length=args.max_completion_length,
            temperature=args.temperature,
        )
        step.add(inputs, rollouts)
        self.stopwatch.enter("update")
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=args.device)
        rewards = step.rewards()
        outcome = step_outcome(rewards, self.rewards.weights, self.shape_fitness)
        if outcome.failed == args.population_size:
            raise NonFiniteError(
                f"step {self.state.global_step + 1}: no member has a fitness: the rewards of each "
                f"({', '.join(self.rewards.names)}) are NaN, infinite or failed for some completion, or None for all"
            )
        self._update.write_gradients(outcome, *now)
        sigmas = self._update.sigmas_at(*now).values()
        self._record.add_step(
            self.state.global_step + 1,
            outcome,
            rewards,
            step,
            sigma=sum(sigmas) / len(sigmas),
            user_metrics=self.rewards.pop_metrics(),
        )
        self._step = PopulationStep(args.population_size, self.accelerator)
        # Not a copy to the device, which would be waited for.
        return torch.full((), -outcome.fitness.nanmean().item(), dtype=torch.float32, device=args.device)

    def shape_fitness(self, fitness: Tensor, per_prompt: Tensor) -> Tensor:
        """Weights `(P,)` of the members' noise from rewards `(P,)`, and `(P, M)` by prompt. Override it at will."""
        how = self.args.fitness_shaping
        return shape_fitness(per_prompt if how == "prompt_baseline" else fitness, how)

    def before_training(self, checkpoint: str | None) -> None:
        """Cut the history to what a checkpoint has seen, and make ready for the step after it."""
        args, update, done = self.args, self._update, 0
        if checkpoint is not None:
            done = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE)).global_step
            update.sigmas, anchor = load_state(checkpoint, args, self.centre)
            update.anchor = {name: anchor[name].to(tensor) for name, tensor in update.anchor.items()}
        sequence = PromptSequence(self._train_prompts, args.seed)
        first_prompts = [sequence[place].ids for place in range(args.prompts_per_step)]
        update.prepare(self.model, first_prompts, self._pad_token)
        self._record.begin(done)
        self._evaluated_at = -1
        self._step = PopulationStep(args.population_size, self.accelerator)

    # ---- Evaluation: the centre, greedily ----

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.stopwatch.during("eval"):
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        rewards, metrics = evaluate_centre(
            self.centre,
            self._rollout,
            dataloader,
            self.rewards,
            prefix=metric_key_prefix,
            max_completion_length=self.args.max_completion_length,
            accelerator=self.accelerator,
        )
        reward = metrics[f"{metric_key_prefix}_reward"]
        if self._is_recording:
            self._record.add_evaluation(self.state.global_step, metric_key_prefix, reward, rewards)
        self._evaluated_at = self.state.global_step
        show_in_progress_bar(self.callback_handler.callbacks, metric_key_prefix, reward)
        return EvalLoopOutput(None, None, metrics, len(rewards))  # type: ignore[arg-type]  # no predictions

    # ---- Log, history, checkpoints ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs or "train_runtime" in logs:  # not an evaluation's
            logs |= mean_of_each(gather_object([self._record.pop_metrics()]))
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        with self.stopwatch.during("checkpoint"):
            super().save_model(output_dir, _internal_call)
            if self.args.should_save:
                folder, update = output_dir or self._folder, self._update
                save_state(folder, self.args, self.centre, update.sigmas, update.anchor)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.stopwatch.during("checkpoint"):
            super()._save_checkpoint(model, trial)
        if self.args.should_save:
            write_breakdown(self._folder, self.stopwatch.seconds(), steps=self.state.global_step)


def _settings(kind: type[Any], args: ESLoRAConfig) -> Any:
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})
