"""The model behind reward functions: loaded, placed, asked once about each batch of texts."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignkit.reward_model.data import encode_text
from alignkit.reward_model.export import RewardModel, load_reward_model
from alignkit.reward_model.loading import is_adapter_folder, is_reward_checkpoint, local_folder
from alignkit.reward_model.modeling import add_reward_forward, find_score, settings_of
from alignkit.rewards.completions import whole_characters

logger = logging.getLogger(__name__)

TRUNCATED = "reward_model/truncated"
"""Metric: share of the texts of a batch that lost tokens."""

Model = str | Path | RewardModel | PreTrainedModel | PeftModel


class SharedScores:
    """Scores of the last texts under every head, kept so that heads that are asked in turn cost one forward.

    A head that asks a second time about the same texts gets new scores: the model may have changed.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: PreTrainedTokenizerBase | None,
        batch_size: int,
        max_length: int | None,
        device: str | torch.device | None,
        loading: dict[str, Any],
    ):
        for name, value, least in (("batch_size", batch_size, 1), ("max_length", max_length, 2)):
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        self._path = str(model) if isinstance(model, str | Path) else None
        if self._path is None and loading:
            raise ValueError(f"{sorted(loading)} can be given with a folder or a name, not with a model in memory")
        if self._path is not None and tokenizer is not None:
            raise ValueError("tokenizer goes with a model in memory; a folder or a repository has its own")
        self._device, self._loading = device, loading
        self.reward_model = self._load() if self._path is not None else _taken_in(model, tokenizer)
        self._is_placed = False
        self._batch_size = batch_size
        self._max_length = _longest(self.reward_model) if max_length is None else max_length
        self.scored_texts = self.truncated_texts = 0
        self._texts: list[Any] | None = None
        self._scores = torch.empty(0)
        self._served: set[str] = set()

    def __call__(self, name: str, texts: list[Any], log_metric: Callable[[str, float], None] | None) -> Tensor:
        if texts != self._texts or name in self._served:
            self._texts = None  # should the scoring fail, nothing of the last batch may be taken for this one's
            self._scores, self._served = self._score(texts, log_metric), set()
            self._texts = texts
        self._served.add(name)
        return self._scores

    def __getstate__(self) -> dict[str, Any]:
        if self._path is None:
            raise TypeError("a reward model in memory cannot be sent to another process; save it and give its folder")
        return {name: value for name, value in self.__dict__.items() if name != "reward_model"} | {"_is_placed": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.reward_model = self._load()

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedScores":
        # Nothing here changes the model, and a second copy of it may not fit.
        return self

    def _score(self, texts: list[Any], log_metric: Callable[[str, float], None] | None) -> Tensor:
        """Scores (n, K) float32 on the CPU."""
        self._place()
        tokenizer = self.reward_model.tokenizer
        encoded: list[Any] = [encode_text(tokenizer, whole_characters(text)) for text in texts]
        if [] in encoded:
            raise ValueError(f"text {encoded.index([])} is empty, and the tokenizer adds no special token to score")
        fitting = [_cut(ids, self._max_length, tokenizer) for ids in encoded]
        n_truncated = sum(len(cut) < len(ids) for cut, ids in zip(fitting, encoded, strict=True))
        if n_truncated and not self.truncated_texts:
            longest = max(map(len, encoded))
            logger.warning("a text of %d tokens loses its oldest ones to fit max_length=%d", longest, self._max_length)
        self.scored_texts += len(texts)
        self.truncated_texts += n_truncated
        if log_metric is not None and texts:
            log_metric(TRUNCATED, n_truncated / len(texts))
        scores = self.reward_model.score(fitting, self._batch_size)
        if not scores.isfinite().all():
            place = int((~scores.isfinite()).any(-1).nonzero()[0])
            raise ValueError(f"text {place} has the scores {scores[place].tolist()}; load the model in another dtype")
        return scores

    def _place(self) -> None:
        """Bring the model to its device, at the first scoring: by then the process of a rank has chosen its own."""
        model: Any = self.reward_model.model
        if self._is_placed:
            return
        self._is_placed = True
        is_spread = getattr(model, "hf_device_map", None) is not None or getattr(model, "is_quantized", False)
        if self._device is not None:
            model.to(self._device)
        elif self._path is not None and not is_spread and torch.accelerator.is_available():
            accelerator = torch.accelerator.current_accelerator()
            assert accelerator is not None
            model.to(torch.device(accelerator.type, torch.accelerator.current_device_index()))

    def _load(self) -> RewardModel:
        assert self._path is not None
        hub = {key: self._loading[key] for key in ("revision", "token") if key in self._loading}
        kwargs = {key: value for key, value in self._loading.items() if key not in hub}
        folder = local_folder(self._path, **hub)
        if is_adapter_folder(folder):
            return load_reward_model(folder, **kwargs)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=kwargs.get("trust_remote_code", False))
        if not is_reward_checkpoint(config):
            raise ValueError(f"{self._path} is no reward model: its config names {config.architectures}")
        with torch.device("meta"):
            skeleton = AutoModelForSequenceClassification.from_config(config)
        if _has_linear_score(skeleton):
            return load_reward_model(folder, **kwargs)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True, **{"dtype": "auto", **kwargs}
        )
        model, info = loaded
        if info["missing_keys"]:
            raise ValueError(f"{self._path} does not hold {sorted(info['missing_keys'])}; save it with its head")
        return RewardModel(model.eval(), AutoTokenizer.from_pretrained(folder))


def _taken_in(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> RewardModel:
    if isinstance(model, RewardModel):
        return model if tokenizer is None else RewardModel(model.model, tokenizer)
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise ValueError(f"model is a {type(model).__name__}; give a folder, a hub name or a sequence classifier")
    if tokenizer is None:
        raise ValueError(f"a {type(model).__name__} in memory needs its tokenizer; give tokenizer=...")
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not type(base).__name__.endswith("ForSequenceClassification"):
        raise ValueError(f"{type(base).__name__} is no sequence classifier; give a reward model")
    if _has_linear_score(base):
        add_reward_forward(base, score_softcap=settings_of(base.config).get("score_softcap"))
    return RewardModel(model, tokenizer)


def _has_linear_score(model: Any) -> bool:
    """Whether the head is a decoder's bias-free `score`, not an encoder's `classifier`."""
    try:
        find_score(model)
    except ValueError:
        return False
    return True


def _longest(reward_model: RewardModel) -> int:
    """Most tokens that the positions of the model and its tokenizer allow."""
    model = reward_model.model
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    allowed = reward_model.tokenizer.model_max_length
    if positions is None:
        return allowed
    # RoBERTa and its kin have no tokens at the positions up to that of the pad token.
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    pads = [getattr(table, "padding_idx", None) for table in tables]
    return min(positions - max((pad + 1 for pad in pads if pad is not None), default=0), allowed)


def _cut(ids: list[int], limit: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids, or BOS and as many of the last ones as fit: what `truncate_prompt` leaves in training."""
    if len(ids) <= limit:
        return ids
    start = int(ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id))
    return ids[:start] + ids[start + len(ids) - limit :]
