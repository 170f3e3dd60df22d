"""Configuration of `ESLoRATrainer`."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from transformers import TrainingArguments

from alignkit.es_lora.backends import BackendName
from alignkit.es_lora.centre import Perturb
from alignkit.es_lora.fitness import FITNESS_SHAPINGS, FitnessShaping
from alignkit.es_lora.sigmas import SigmaMode
from alignkit.reliability.config import ReliableArguments

SigmaSchedule = Literal["constant", "linear", "cosine"]
CHOICES = {
    "sigma_mode": get_args(SigmaMode),
    "sigma_schedule": get_args(SigmaSchedule),
    "perturb": get_args(Perturb),
    "fitness_shaping": FITNESS_SHAPINGS,
    "backend": get_args(BackendName),
}
_POSITIVE = ("sigma", "sigma_end", "init_scale", "perturb_scale", "reward_timeout_s", "backend_timeout_s")
_WHOLE = (
    "prompts_per_step",
    "rollouts_per_prompt",
    "max_completion_length",
    "population_chunk_size",
    "eval_prompts",
    "completions_steps",
)


class _PromptsAtATime(int):
    """A `per_device_train_batch_size` that was worked out here, so that a copy of the config is not taken for a user
    who set it."""


@dataclass
class ESLoRAConfig(ReliableArguments, TrainingArguments):
    r"""
    Configuration class for [`ESLoRATrainer`].

    Only the parameters specific to evolution strategies, and those with another default, are listed here; all of
    [`~transformers.TrainingArguments`]'s keep their meaning. `per_device_train_batch_size` cannot be set, see
    `prompts_per_step`; `fp16`, `bf16`, DeepSpeed and FSDP are refused.

    Parameters:
        population_size (`int`, *optional*, defaults to `30`):
            P, members of a step. At least 2; even if `antithetic`.
        sigma (`float`, *optional*, defaults to `0.05`):
            Size of the noise, in the unit of `sigma_mode`.
        sigma_mode (`str`, *optional*, defaults to `"output"`):
            `"output"`: one std for each module, such that the perturbation changes the module's output W x by the
            share `sigma` of its norm on the prompts of the first step, whatever the model's weights and the rank.
            `"weight"`: `sigma` is the std of the noise on each perturbed LoRA weight (`"lowrank"`: on each weight of
            the layer). `"adaptive"`: 10 % of the mean |W| of the module, times `init_scale` at step 0 and
            `perturb_scale` later; `sigma` is not read.
        sigma_schedule (`str`, *optional*, defaults to `"constant"`):
            `"constant"`, or `"linear"` or `"cosine"` from `sigma` to `sigma_end` over the training.
        sigma_end (`float`, *optional*):
            What a schedule that is not constant ends at.
        init_scale (`float`, *optional*, defaults to `1.0`), perturb_scale (`float`, *optional*, defaults to `1.0`):
            Factors of `sigma_mode="adaptive"` at step 0 and later.
        perturb (`str`, *optional*, defaults to `"B"`):
            What has noise and is trained. `"B"`: B alone, A being drawn once and shared; it was better in
            `examples/es_stories_style.py`. `"A"`: A alone, which needs a B that is not 0. `"both"`: both, around an A
            that is not 0. `"lowrank"`: the layer's whole weight, with noise of the rank `r` of the `peft_config`; the
            centre is a full-rank adapter, and as large as the layer.
        fitness_shaping (`str`, *optional*, defaults to `"z_score"`):
            `"z_score"`, `"centered_rank"`, `"prompt_baseline"` or `"sign"`; see [`alignkit.es_lora.shape_fitness`].
        divide_by_sigma (`bool`, *optional*, defaults to `False`):
            Whether the gradient is the textbook's, divided by sigma. If not, a module with half the noise of another
            takes steps of half the size; to change `sigma` or schedule it does not change the steps.
        antithetic (`bool`, *optional*, defaults to `True`):
            Whether members come in pairs with opposite noise.
        prompts_per_step (`int`, *optional*, defaults to `8`):
            M, prompts of an optimiser step, on all devices and over all `gradient_accumulation_steps` together, which
            must divide it. It replaces `per_device_train_batch_size`.
        rollouts_per_prompt (`int`, *optional*, defaults to `1`):
            Completions that each member samples for each prompt; above 1 only with a temperature.
        max_completion_length (`int`, *optional*, defaults to `256`):
            Tokens of a completion, at most.
        temperature (`float`, *optional*, defaults to `0.0`):
            0 decodes greedily, as the evaluations of the centre do: members then differ by their weights alone. Above
            0 completions are sampled, with the same noise for all members: for a policy that is to be sampled from,
            and for a reward so coarse that greedy members often have equal fitness (`frac_no_variance` in the log).
        population_chunk_size (`int`, *optional*):
            Members that are generated together, all by default. Results do not depend on it. A server has to hold
            as many adapters.
        backend (`str`, *optional*, defaults to `"hf"`):
            What generates: `"hf"`, the model in this process; `"vllm"` or `"sglang"`, a server of that kind which
            serves the same base model and reads adapters from the shared memory of this machine. The trainer still
            loads the model, for the adapter's shapes and the checkpoints. See [`alignkit.es_lora.backends.http`].
        backend_url (`str`, *optional*):
            Of the server, such as `"http://localhost:8000"`.
        backend_timeout_s (`float`, *optional*, defaults to `300.0`):
            Deadline of each request to the server, which may wait there for others, and for the server to be ready
            at the start and after a restart.
        reward_weights (`list[float]`, *optional*):
            Weight of each reward function, 1 by default.
        reward_timeout_s (`float`, *optional*):
            Deadline of a call of a reward function, which is then made for one member at a time (in evaluations, for
            `per_device_eval_batch_size` prompts) in a process that is killed when it is late. The member counts as
            failed.
        anchor_decay (`float`, *optional*, defaults to `0.0`):
            Pull of the trained weights to their initial values; see [`alignkit.es_lora.anchor_decay`].
        eval_prompts (`int`, *optional*):
            Size of the subset of `eval_dataset` that evaluations use: the same in all of them, drawn with `seed`. All
            rows by default.
        completions_steps (`int`, *optional*, defaults to `10`):
            Steps from one record in `results.jsonl` with completions of the centre and the best member to the next.
        model_init_kwargs (`dict[str, Any]`, *optional*):
            For `from_pretrained`, when the model is given by name.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            For the chat template of conversational prompts.
        learning_rate (`float`, *optional*, defaults to `0.1`):
            Of the optimiser. Plain gradient descent moves a weight by about learning_rate / (sigma √P) stds of its
            noise a step (`sigma_mode="adaptive"`: learning_rate / √P, so take some 20 times as much), mostly at
            random: over n steps that adds up to √n times as much. The default suits tens of steps.
        optim (`str`, *optional*, defaults to `"sgd"`):
            The estimate is mostly noise, which SGD averages; Adam divides by its size and so walks at random at full
            speed.
        lr_scheduler_type (`str`, *optional*, defaults to `"constant"`):
            ES runs are stopped when they no longer improve, and a decay to 0 needs to know when.
        max_grad_norm (`float`, *optional*, defaults to `0.0`):
            No clipping: the norm of the estimate is set by the number of weights and P, not by the loss.

    `logging_steps` defaults to 10, as in TRL. `eval_steps` switches on evaluations every so many steps, without
    `eval_strategy`. `logging_nan_inf_filter` defaults to `False` and
    `enable_jit_checkpoint` to `True`; see [`ReliableArguments`].
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs", "chat_template_kwargs"]

    population_size: int = field(default=30, metadata={"help": "P, members of a step."})
    sigma: float = field(default=0.05, metadata={"help": "Size of the noise, in the unit of sigma_mode."})
    sigma_mode: SigmaMode = field(
        default="output", metadata={"help": "Unit of sigma: share of the output, std on the weights, or adaptive."}
    )
    sigma_schedule: SigmaSchedule = field(default="constant", metadata={"help": "How sigma moves to sigma_end."})
    sigma_end: float | None = field(default=None, metadata={"help": "What sigma ends at."})
    init_scale: float = field(default=1.0, metadata={"help": "Factor of sigma_mode=adaptive at step 0."})
    perturb_scale: float = field(default=1.0, metadata={"help": "Factor of sigma_mode=adaptive after step 0."})
    perturb: Perturb = field(default="B", metadata={"help": "What has noise: B, A, both, or lowrank."})
    fitness_shaping: FitnessShaping = field(
        default="z_score", metadata={"help": "z_score, centered_rank, prompt_baseline or sign."}
    )
    divide_by_sigma: bool = field(default=False, metadata={"help": "Whether the gradient is divided by sigma."})
    antithetic: bool = field(default=True, metadata={"help": "Whether members come in pairs with opposite noise."})
    prompts_per_step: int = field(default=8, metadata={"help": "Prompts of an optimiser step, on all devices."})
    rollouts_per_prompt: int = field(default=1, metadata={"help": "Completions of each member for each prompt."})
    max_completion_length: int = field(default=256, metadata={"help": "Tokens of a completion, at most."})
    temperature: float = field(
        default=0.0, metadata={"help": "0: greedy; above: of sampling, with noise that members share."}
    )
    population_chunk_size: int | None = field(default=None, metadata={"help": "Members generated together."})
    backend: BackendName = field(default="hf", metadata={"help": "What generates: hf, vllm or sglang."})
    backend_url: str | None = field(default=None, metadata={"help": "Of the vLLM or SGLang server."})
    backend_timeout_s: float = field(default=300.0, metadata={"help": "Deadline of each request to the server."})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "Weight of each reward function."})
    reward_timeout_s: float | None = field(default=None, metadata={"help": "Deadline of a call of a reward function."})
    anchor_decay: float = field(default=0.0, metadata={"help": "Pull of the weights to their initial values."})
    eval_prompts: int | None = field(default=None, metadata={"help": "Rows of the evaluation set that are used."})
    completions_steps: int = field(default=10, metadata={"help": "Steps between two records with completions."})
    model_init_kwargs: dict[str, Any] | str | None = field(default=None, metadata={"help": "For from_pretrained."})
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "For the chat template of conversational prompts."}
    )
    learning_rate: float = field(default=0.1, metadata={"help": "Of the optimiser; see the unit in the docs."})
    optim: str = field(default="sgd", metadata={"help": "The optimiser."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Schedule of the learning rate."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Largest norm of the estimate; 0 does not clip."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two logs."})
    per_device_train_batch_size: int | None = field(  # type: ignore[assignment]  # a number after __post_init__
        default=None, metadata={"help": "Cannot be set: use prompts_per_step."}
    )

    def __post_init__(self):
        if self.eval_steps and self.eval_strategy == "no":
            self.eval_strategy = "steps"
        self._check_precision()
        super().__post_init__()
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {list(choices)}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be a finite number above 0")
        for name in _WHOLE:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name} is {value!r}; it must be a whole number, at least 1")
        for name in ("temperature", "anchor_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number, 0 or more")
        self._check_population()
        self._check_schedule()
        self._check_backend()
        self._take_batch_size()

    def _check_population(self) -> None:
        if self.population_size < 2:
            raise ValueError(f"population_size is {self.population_size}; members are compared, so give at least 2")
        if self.antithetic and self.population_size % 2:
            raise ValueError(
                f"population_size is {self.population_size}; antithetic members come in pairs, so make it even or set "
                "antithetic=False"
            )
        if self.fitness_shaping == "sign" and not self.antithetic:
            raise ValueError("fitness_shaping='sign' compares the members of a pair; set antithetic=True")
        if self.rollouts_per_prompt > 1 and self.temperature == 0:
            raise ValueError(
                f"rollouts_per_prompt is {self.rollouts_per_prompt} but temperature 0 gives the same completion each "
                "time; raise the temperature or leave 1 rollout"
            )

    def _check_schedule(self) -> None:
        if self.sigma_schedule != "constant" and self.sigma_end is None:
            raise ValueError(f"sigma_schedule is {self.sigma_schedule!r}; say where it ends with sigma_end")
        if self.sigma_schedule == "constant" and self.sigma_end is not None:
            raise ValueError(f"sigma_end is {self.sigma_end} but sigma_schedule is 'constant', which has no end")

    def _check_backend(self) -> None:
        if self.backend == "hf":
            if self.backend_url is not None:
                raise ValueError(
                    f"backend_url is {self.backend_url!r} but backend 'hf' has no server; set backend to 'vllm' or "
                    "'sglang', or leave the URL out"
                )
            return
        if not (self.backend_url or "").startswith(("http://", "https://")):
            raise ValueError(
                f"backend is {self.backend!r} and backend_url {self.backend_url!r}; give the server's URL, such as "
                "'http://localhost:8000'"
            )
        if self.perturb == "lowrank":
            raise ValueError(
                f"perturb='lowrank' has a centre of full rank, which no adapter of a {self.backend} server holds; use "
                "another perturb, or backend='hf'"
            )

    def _check_precision(self) -> None:
        for name, dtype in {"fp16": "float16", "bf16": "bfloat16"}.items():
            if getattr(self, name):
                raise ValueError(
                    f"{name}=True is for the training forward and its gradients, and there are none; leave it out and "
                    f"load the model in half precision with model_init_kwargs={{'dtype': {dtype!r}}}"
                )
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size=True is not supported; lower population_chunk_size when memory is short"
            )

    def _take_batch_size(self) -> None:
        given = self.per_device_train_batch_size
        if given is not None and not isinstance(given, _PromptsAtATime):
            raise ValueError(
                f"per_device_train_batch_size is {given}; all ranks see the same prompts here, so set "
                f"prompts_per_step (now {self.prompts_per_step}) instead"
            )
        prompts, rest = divmod(self.prompts_per_step, self.gradient_accumulation_steps)
        if rest:
            raise ValueError(
                f"prompts_per_step is {self.prompts_per_step} and gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps}; the prompts of a step are cut into as many equal parts, so make "
                "it a multiple"
            )
        self.per_device_train_batch_size = _PromptsAtATime(prompts)
