"""Models on their way into a trainer or out of a folder: names settled, `score` in float32, forward replaced."""

from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from peft import PeftConfig, PeftModel, TaskType, load_peft_weights
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file, logging

from alignkit._compat import keep_cpu_4bit_gradients_right, load_sequence_classifier
from alignkit.reward_model.modeling import (
    CONFIG_KEY,
    add_reward_forward,
    adopt_head_names,
    find_score,
    initialize_score,
    name_heads,
    settings_of,
)
from alignkit.storage import PICKLED_WEIGHTS, refused_pickles_named

logger = logging.get_logger(__name__)


def load_backbone(path: str, config: PretrainedConfig, *, has_score: bool, **kwargs: Any) -> PreTrainedModel:
    """A sequence classifier with a float32 `score`, which the checkpoint holds (`has_score`) or which is random.

    Raises:
        ValueError: a damaged or unsafe checkpoint file, or one without the `score` it should have.
    """
    try:
        with refused_pickles_named(path, *PICKLED_WEIGHTS):
            return load_sequence_classifier(path, config, has_score=has_score, **kwargs)
    except SafetensorError as error:
        raise ValueError(f"{path} holds a damaged safetensors file ({error}); save or download it again") from error


def is_reward_checkpoint(config: PretrainedConfig) -> bool:
    """Whether the checkpoint was saved as a sequence classifier."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def load_for_training(
    path: str,
    args: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    quantization_config: BitsAndBytesConfig | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer named by `path`, with the checkpoint's heads, or else heads drawn from `args.seed`.

    Raises:
        ValueError: names that do not fit the checkpoint's, or a checkpoint that claims heads it does not hold.
    """
    kwargs = dict(args.model_init_kwargs or {})
    if quantization_config is not None:
        if "quantization_config" in kwargs:
            raise ValueError(
                "quantization_config is both a trainer argument and in args.model_init_kwargs; keep the former"
            )
        kwargs["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        kwargs["device_map"] = None  # every rank holds its own copy; "auto" would spread one over all devices
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    where = {key: kwargs[key] for key in ("revision", "trust_remote_code") if key in kwargs}
    if find_adapter_config_file(path, revision=where.get("revision")) is not None:
        # The adapter of an earlier run: training goes on with it.
        folder = local_folder(path, revision=kwargs.pop("revision", None))
        model: Any = load_folder(folder, is_trainable=True, **kwargs)
        return model, tokenizer or AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(path, **where)
    has_score = is_reward_checkpoint(config)
    if has_score:
        adopt_head_names(config, args.head_names, path)
    elif args.head_names is None:
        raise ValueError(f"head_names is not set and {path} is no reward model to take them from; set head_names")
    else:
        name_heads(config, args.head_names)
    model = load_backbone(path, config, has_score=has_score, **kwargs)
    if not has_score:
        initialize_score(model, args.seed)
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(path, **where)
    return model, tokenizer


def check_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a `ValueError` if nothing can pad a batch; warn if padding and the end of a text look alike.

    Here texts are pooled by the attention mask, so that pad = EOS does no harm. Everyone else who loads the model
    pools the last token that is not the pad token, and skips the EOS that was scored in training.
    """
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ValueError("the tokenizer has neither a pad_token nor an eos_token to pad with; set tokenizer.pad_token")
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        logger.warning(
            f"the pad token is the end-of-sequence token {tokenizer.eos_token!r}: alignkit scores such a model right, "
            "but a plain AutoModel reload, vLLM and SGLang pool one token too early; set another tokenizer.pad_token"
        )


def take_in_model(model: PreTrainedModel | PeftModel, args: Any, peft_config: PeftConfig | None) -> list[str]:
    """Settle head names of a model object, give it the reward forward, and return the names.

    Raises:
        ValueError: other heads than `args.head_names`, or an adapter that is not a sequence classification adapter.
    """
    adapter = model.active_peft_config if isinstance(model, PeftModel) else peft_config
    if adapter is not None and adapter.task_type != TaskType.SEQ_CLS:
        raise ValueError(
            f"the adapter's task_type is {adapter.task_type!r}; a reward model needs task_type='SEQ_CLS', which "
            "trains and saves `score` with the adapter"
        )
    if adapter is not None and adapter.is_prompt_learning and args.encode_batch_size is not None:
        raise ValueError(
            f"encode_batch_size={args.encode_batch_size} cannot split a batch under a {adapter.peft_type} adapter, "
            "whose tokens come with the whole batch; leave it out, or use another adapter"
        )
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    find_score(base)
    names = adopt_head_names(base.config, args.head_names, type(base).__name__)
    kept_softcap = settings_of(base.config).get("score_softcap")
    add_reward_forward(base, score_softcap=kept_softcap if args.score_softcap is None else args.score_softcap)
    return names


def load_folder(
    path: str,
    *,
    dtype: Any = "auto",
    quantization_config: BitsAndBytesConfig | Literal["as trained"] | None = "as trained",
    is_trainable: bool = False,
    **kwargs: Any,
) -> PreTrainedModel | PeftModel:
    """The model of a folder that a trainer or `RewardModel.save` wrote, in evaluation mode.

    Args:
        path: the folder.
        dtype: of the backbone, default as saved.
        quantization_config: of the backbone, default the one that an adapter was trained on; None for none.
        is_trainable: whether an adapter's weights shall require gradients.

    Raises:
        ValueError: no reward model there, or an adapter whose base model cannot be found.
    """
    config = AutoConfig.from_pretrained(path, trust_remote_code=kwargs.get("trust_remote_code", False))
    settings = settings_of(config)
    trained_on = settings.pop("base_quantization", None)  # of this adapter's base, not of what is saved from here on
    setattr(config, CONFIG_KEY, settings)
    if quantization_config == "as trained":
        quantization_config = None if trained_on is None else BitsAndBytesConfig.from_dict(trained_on)
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    if not is_reward_checkpoint(config):
        raise ValueError(f"{path} is no reward model: its config names {config.architectures}")
    is_adapter = is_adapter_folder(path)
    source = base_of_adapter(path) if is_adapter else path
    if is_adapter and settings.get("base_revision") is not None and not Path(source).is_dir():
        kwargs["revision"] = settings["base_revision"]
    try:
        # An adapter brings its own `score`, whatever its base has.
        model = load_backbone(source, config, has_score=not is_adapter, dtype=dtype, **kwargs)
    except OSError as error:
        if not is_adapter:
            raise
        raise ValueError(
            f"{path} is an adapter of {source!r}, which cannot be loaded ({error}); put that model there or in "
            f"{path}/base_model, or save the adapter with form='full'"
        ) from error
    keep_cpu_4bit_gradients_right(model)
    add_reward_forward(model, score_softcap=settings.get("score_softcap"))
    if not is_adapter:
        return model.eval()
    if is_trainable and PeftConfig.from_pretrained(path).is_prompt_learning:
        raise ValueError(
            f"{path} is a prompt-learning adapter, which PEFT cannot train further from a folder; resume the run with "
            "trainer.train(resume_from_checkpoint=...)"
        )
    with refused_pickles_named(path, *PICKLED_WEIGHTS):
        adapted = PeftModel.from_pretrained(model, path, is_trainable=is_trainable)
    restore_adapter_dtypes(adapted, path)
    return adapted.eval()


def local_folder(path: str | Path, **hub: Any) -> str:
    """`path` if it is a folder, else the downloaded copy of the hub repository of that name."""
    if Path(path).is_dir():
        return str(path)
    try:
        return snapshot_download(str(path), **hub)
    except HFValidationError as error:
        raise FileNotFoundError(f"{path} is no folder here, and no name of a hub repository") from error


def is_adapter_folder(path: str) -> bool:
    """Whether the folder holds an adapter."""
    return (Path(path) / "adapter_config.json").is_file()


def restore_adapter_dtypes(model: PeftModel, path: str) -> None:
    """Give adapter weights the dtypes they have in the file.

    PEFT loads them in float32, but an adapter that was trained in bfloat16 on a quantised base also computes in
    bfloat16, and its scores would change in the second decimal.
    """
    stored = load_peft_weights(path, device="cpu")
    for name, parameter in model.named_parameters():
        key = name.replace(f".{model.active_adapter}.", ".")
        if key in stored and parameter.dtype != stored[key].dtype:
            parameter.data = parameter.data.to(stored[key].dtype)


def base_of_adapter(path: str) -> str:
    """Where the base model of an adapter folder is: beside it in `base_model`, or where its config says."""
    beside = Path(path) / "base_model"
    if beside.is_dir():
        return str(beside)
    source = PeftConfig.from_pretrained(path).base_model_name_or_path
    if not source:
        raise ValueError(f"{path} is an adapter that does not say what its base model is; save it with form='full'")
    return source
