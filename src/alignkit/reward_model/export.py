"""Using a trained reward model: load, score, save in three forms, fold into one head, hand to a policy trainer."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from alignkit.reward_model.batching import pad_texts
from alignkit.reward_model.data import encode_text
from alignkit.reward_model.loading import load_folder, local_folder
from alignkit.reward_model.modeling import (
    CONFIG_KEY,
    add_reward_forward,
    find_score,
    list_head_names,
    name_heads,
    settings_of,
)
from alignkit.reward_model.rows import Text

RewardFunction = Callable[..., list[float]]


@dataclass
class RewardModel:
    """A reward model with its tokenizer.

    Attributes:
        model: a `*ForSequenceClassification`, or a `PeftModel` around one, whose `logits` are `(M, K)` float32.
        tokenizer: its tokenizer, with the chat template it was trained with.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def head_names(self) -> list[str]:
        return list_head_names(self.model.config)

    @torch.no_grad()
    def score(self, texts: Sequence[Text], batch_size: int = 16, **chat_template_kwargs: Any) -> Tensor:
        """Scores `(n, K)` float32 on the CPU, of strings or lists of chat messages, encoded as in training.

        The order and the batch size do not matter: texts are scored in batches of similar length and put back.
        `chat_template_kwargs` (`tools=...`, say) go to the chat template, as a row's own do in training.

        Raises:
            ValueError: one text instead of a list of them, or a conversation without messages.
        """
        if isinstance(texts, str) or any(isinstance(text, dict) or text == [] for text in texts):
            raise ValueError(f"texts must be a list of strings or of conversations, got {texts!r:.80}; wrap one in []")
        encoded = [encode_text(self.tokenizer, text, **chat_template_kwargs) for text in texts]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        scores = torch.empty(len(encoded), len(self.head_names))
        pad_token_id = self.tokenizer.pad_token_id or 0  # any id will do: the mask says what is real
        was_training = self.model.training
        self.model.eval()
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = pad_texts([encoded[row] for row in rows], pad_token_id)
            batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            scores[rows] = self.model(**batch, use_cache=False).logits.float().cpu()
        self.model.train(was_training)
        return scores

    def save(self, path: str | Path, form: str = "full") -> None:
        """Write a folder that [`load_reward_model`] reads.

        Args:
            path: the folder.
            form: `"full"`: everything needed, with an adapter's base model in `base_model`. `"adapter"`: the adapter
                and a config that knows the heads; the base model stays where it is. `"merged"`: one plain checkpoint
                with the adapter merged in, for `AutoModelForSequenceClassification`, vLLM and SGLang.

        Raises:
            ValueError: an unknown form, `"adapter"` without an adapter, or another form for one on a quantised base.
        """
        if form not in ("full", "adapter", "merged"):
            raise ValueError(f"form is {form!r}; choose 'full', 'adapter' or 'merged'")
        if form == "adapter" and not isinstance(self.model, PeftModel):
            raise ValueError("form='adapter' needs a model with an adapter; this one has none, use form='full'")
        if form == "full" and isinstance(self.model, PeftModel) and is_quantized(self.model):
            raise ValueError("form='full' would write the quantised base model; use form='adapter'")
        model = merged(self.model) if form == "merged" else self.model
        model.save_pretrained(str(path))
        write_adapter_files(model, path, with_base=form == "full")
        self.tokenizer.save_pretrained(path)


def load_reward_model(
    path: str | Path, *, revision: str | None = None, token: str | bool | None = None, **kwargs: Any
) -> RewardModel:
    """Load what [`RewardModel.save`] or `trainer.save_model` wrote: backbone, adapter, heads, template and pooling.

    Args:
        path: folder, or name of a repository on the hub.
        revision, token (*optional*): of a hub repository.
        **kwargs: for `from_pretrained`: `dtype` (default: as saved), `device_map`, `quantization_config`, ...

    Raises:
        ValueError: no reward model there, a damaged file, or an adapter whose base model is not to be found.
    """
    folder = local_folder(path, revision=revision, token=token)
    return RewardModel(load_folder(folder, **kwargs), AutoTokenizer.from_pretrained(folder))


def write_adapter_files(model: PreTrainedModel | PeftModel, path: str | Path, *, with_base: bool) -> None:
    """Beside a PEFT adapter, write what it leaves out: the config with the heads, and the base model if need be.

    The base model is also written when it has no name or path to be found again by.
    """
    if not isinstance(model, PeftModel):
        return
    base: Any = model.get_base_model()
    source, adapter_file = base.config._name_or_path, Path(path) / "adapter_config.json"
    if source and Path(source).is_dir():  # an absolute path is found again from any folder
        adapter = json.loads(adapter_file.read_text()) | {"base_model_name_or_path": str(Path(source).absolute())}
        adapter_file.write_text(json.dumps(adapter, indent=2, sort_keys=True))
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.dtype = base.dtype
    settings = settings_of(config)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        settings["base_quantization"] = quantization.to_dict()
        del config.quantization_config
    if getattr(config, "_commit_hash", None) is not None:  # set by a load from the hub
        settings["base_revision"] = config._commit_hash
    setattr(config, CONFIG_KEY, settings)
    config.save_pretrained(path)
    if with_base or not source:
        plain_base(model).save_pretrained(Path(path) / "base_model")


def check_base_has_name(model: PreTrainedModel | PeftModel) -> None:
    """Refuse an adapter on a base model made in code that is to be sharded, whose weights no process could write.

    Raises:
        ValueError: the base model has no name or folder to be loaded from again.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else None
    if base is not None and not base.config._name_or_path:
        raise ValueError(
            "the base model has no name or path, and once it is sharded it cannot be written beside its adapter; "
            "write it with save_pretrained and give the trainer the folder"
        )


def is_quantized(model: PeftModel) -> bool:
    """Whether the model below the adapter is quantised."""
    return getattr(model.get_base_model(), "is_quantized", False)


def plain_base(model: PeftModel) -> PreTrainedModel:
    """A copy of the base model without any trace of the adapter."""
    copied = copy.deepcopy(model)
    if not model.active_peft_config.is_prompt_learning:
        return copied.unload()
    base: Any = copied.get_base_model()
    base.score = base.score.original_module  # all that a prompt-learning adapter has put into it
    return base


def merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """A plain model with the adapter merged in; the argument is untouched.

    Raises:
        ValueError: a quantised base, into which a merge would round the adapter away, or a prompt-learning adapter.
    """
    if not isinstance(model, PeftModel):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"a {model.active_peft_config.peft_type} adapter adds tokens and cannot be merged; save form='full' or "
            "'adapter', and use `combine` in place of `export_scalar`"
        )
    if is_quantized(model):
        raise ValueError(
            "merging into a quantised base would round the adapter away; save form='adapter', load that with "
            "load_reward_model(path, quantization_config=None), which takes the base unquantised, and merge that"
        )
    return copy.deepcopy(model).merge_and_unload()


def export_scalar(model: RewardModel | PreTrainedModel | PeftModel, weights: Mapping[str, float]) -> PreTrainedModel:
    """A model with one label whose score is Σ_h weights[h] · score_h, exactly: the rows of `score` are folded.

    It shares the backbone with `model` (unless an adapter had to be merged). TRL, RewardBench and vLLM's score API
    read such a model as it is.

    Raises:
        ValueError: an unknown head, no head at all, or a soft cap, which cannot be folded into a linear map.
    """
    source = merged(model.model if isinstance(model, RewardModel) else model)
    row = weight_row(list_head_names(source.config), weights).to(source.device)
    if settings_of(source.config).get("score_softcap") is not None:
        raise ValueError("the model has a score_softcap, which no single linear row can reproduce; use `combine`")
    config = copy.deepcopy(source.config)
    name_heads(config, ["score"])
    with torch.device("meta"):
        scalar = type(source)(config)
    setattr(scalar, source.base_model_prefix, getattr(source, source.base_model_prefix))
    folded = row @ find_score(source).weight.detach().float()
    scalar.score = nn.Linear(folded.shape[0], 1, bias=False, device="meta")
    scalar.score.weight = nn.Parameter(folded[None])
    add_reward_forward(scalar)
    return scalar.eval()


def weight_row(head_names: Sequence[str], weights: Mapping[str, float]) -> Tensor:
    """Weights `(K,)` in the order of the heads; heads that are not named weigh 0."""
    unknown = [name for name in weights if name not in head_names]
    if unknown or not weights:
        raise ValueError(f"weights names {list(weights)}; name at least one of the heads {list(head_names)}, no other")
    return torch.tensor([float(weights.get(name, 0.0)) for name in head_names])


def reward_functions(model: RewardModel, batch_size: int = 16) -> list[RewardFunction]:
    """One TRL reward function per head, named by the head; called in turn on a batch they share one forward.

    Each has the signature `f(prompts, completions, **columns) -> list[float]` and takes strings or chat messages. For
    folders, other classifiers, devices and limits see [`alignkit.rewards.model.model_rewards`].
    """
    from alignkit.rewards.model import model_rewards  # which imports this module

    return list(model_rewards(model, batch_size=batch_size))


def combine(model: RewardModel, weights: Mapping[str, float], batch_size: int = 16) -> RewardFunction:
    """A TRL reward function that returns Σ_h weights[h] · score_h. With a soft cap the capped scores are summed."""
    row = weight_row(model.head_names, weights)
    of_heads = reward_functions(model, batch_size)

    def combined(prompts: Sequence[Any] | None = None, completions: Sequence[Any] = (), **columns: Any) -> list[float]:
        scores = torch.tensor([head(prompts, completions, **columns) for head in of_heads])  # (K, n)
        return (row @ scores).tolist()

    return combined
