"""The model: a plain `*ForSequenceClassification` whose `score` has one bias-free float32 row per head.

No class of our own: the forward of the instance is replaced once, so that DDP, FSDP2 and PEFT, which call the model,
run it. The replacement pools by the attention mask, upcasts the pooled rows, and applies `score` to them alone.
"""

import functools
import math
import types
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.utils import logging

from alignkit.shared_prefix import PackedRows, pack_rows, row_cost, share_prefix, why_not_shared

logger = logging.get_logger(__name__)

CONFIG_KEY = "alignkit"


def head_names(model: PreTrainedModel) -> list[str]:
    """Names of the heads, in the order of the rows of `score`."""
    return list_head_names(model.config)


def list_head_names(config: PretrainedConfig) -> list[str]:
    """Names of the heads, in the order of the columns of the scores."""
    id2label: dict[int, str] = config.id2label  # type: ignore[assignment]  # its keys are made integers on loading
    return [id2label[index] for index in range(len(id2label))]


def has_default_names(config: PretrainedConfig) -> bool:
    """Whether nobody has named the heads: `LABEL_0`, `LABEL_1`, ..."""
    names = list_head_names(config)
    return names == [f"LABEL_{index}" for index in range(len(names))]


def name_heads(config: PretrainedConfig, names: Sequence[str]) -> None:
    """Write the head names, raw regression outputs and the number of rows into a config."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = "regression"


def adopt_head_names(config: PretrainedConfig, names: Sequence[str] | None, source: str) -> list[str]:
    """Settle the head names of a model that already has a `score`: kept, or default names replaced.

    Raises:
        ValueError: another number of heads, or other names; both lists are printed.
    """
    present = list_head_names(config)
    if names is None:
        if has_default_names(config):
            raise ValueError(f"head_names is not set and {source} has no head names ({present}); set head_names")
        names = present
    elif len(names) != len(present) or (list(names) != present and not has_default_names(config)):
        raise ValueError(
            f"head_names is {list(names)} but {source} has the heads {present}; use the same names in the same order, "
            "or start from a checkpoint without a reward head"
        )
    elif list(names) != present:
        logger.warning(
            f"{source}: default head names {present} are now {list(names)}; the weights of `score` are kept"
        )
    name_heads(config, names)
    return list(names)


def settings_of(config: PretrainedConfig) -> dict[str, Any]:
    """What alignkit keeps in a config beside the standard fields: the soft cap, an adapter's base quantisation."""
    return dict(getattr(config, CONFIG_KEY, None) or {})


def find_score(model: PreTrainedModel) -> Any:
    """The `score` module, which must be one linear map without a bias.

    Raises:
        ValueError: a model without it, such as an encoder with a `classifier`.
    """
    score: Any = getattr(model, "score", None)
    linear = getattr(score, "original_module", score)  # PEFT wraps a module it saves
    if not isinstance(linear, nn.Linear) or linear.bias is not None:
        raise ValueError(
            f"{type(model).__name__} has no bias-free linear `score`; use a decoder's *ForSequenceClassification "
            "(Llama, Qwen, Gemma, ...), or pass a language model by its name or path, so that heads are added to it"
        )
    return score


@torch.no_grad()
def initialize_score(model: PreTrainedModel, seed: int) -> None:
    """Draw `score` from N(0, 1/(H+1)) with a generator of its own: scores of unit size, from the seed alone.

    Source: Stiennon et al. (2020), arXiv 2009.01325.
    """
    weight = find_score(model).weight
    with _whole_for_writing(weight):
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        weight.copy_(noise / math.sqrt(weight.shape[1] + 1))


def _whole_for_writing(weight: nn.Parameter) -> AbstractContextManager[None]:
    """Within the context a weight that ZeRO-3 has sharded is whole, and what the first process writes is kept."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    return import_module("deepspeed").zero.GatheredParameters([weight], modifier_rank=0)


def upcast_score(model: nn.Module) -> None:
    """Make every copy of `score` float32, in place: in bfloat16 it hardly moves at the learning rates in use."""
    for name, parameter in model.named_parameters():
        if "score" in name.split(".") and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def add_reward_forward(model: PreTrainedModel, *, score_softcap: float | None = None) -> None:
    """Replace `model.forward` by one that pools by mask and scores in float32. Doing it twice changes nothing.

    `model(input_ids, attention_mask).logits` is then `(M, K)` float32: `score` of the hidden state at the last
    position whose mask is 1, outside autocast, c·tanh(score / c) with a soft cap. With `encode_batch_size=m` the texts
    are encoded m at a time and their activations recomputed in the backward pass, chunk by chunk. With
    `share_prefix=True`, after [`prepare_to_share`], tokens that several texts begin with are encoded once, in packed
    rows of at most `max_packed_tokens`; scores do not change.
    """
    find_score(model)
    setattr(model.config, CONFIG_KEY, {**settings_of(model.config), "score_softcap": score_softcap})
    upcast_score(model)
    if getattr(model.forward, "is_reward_forward", False):
        return

    @functools.wraps(type(model).forward)
    def reward_forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        labels=None,
        encode_batch_size=None,
        share_prefix=False,
        max_packed_tokens=None,
        **kwargs,
    ):
        if labels is not None:
            return type(self).forward(self, input_ids, attention_mask, position_ids, labels=labels, **kwargs)
        in_one = encode_batch_size is None or input_ids is None or kwargs.get("past_key_values") is not None
        if not share_prefix and (in_one or len(input_ids) <= encode_batch_size):
            return _score_last_tokens(self, input_ids, attention_mask, position_ids, **kwargs)
        settings = {"share_prefix": share_prefix, "max_packed_tokens": max_packed_tokens}
        chunk_size = len(input_ids) if in_one else encode_batch_size
        logits = _score_in_chunks(self, input_ids, attention_mask, chunk_size, **settings, **kwargs)
        return SequenceClassifierOutputWithPast(logits=logits)

    reward_forward.is_reward_forward = True  # type: ignore[attr-defined]
    model.forward = types.MethodType(reward_forward, model)


def prepare_to_share(model: nn.Module) -> bool:
    """Let a reward model's forward take `share_prefix=True`; one that cannot says why in the log and gives False."""
    if (reason := why_not_shared(model)) is not None:
        logger.warning(f"Common prefixes are computed once for each text: {reason}")
        return False
    share_prefix(model)
    return True


def token_scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Scores of every head at every token, `(M, T, K)` float32, in one forward. Padding positions hold no meaning."""
    base = model
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"a {model.active_peft_config.peft_type} adapter adds tokens, whose scores cannot be shown"
            )
        base = model.get_base_model()
    outputs = _run_backbone(base, input_ids, attention_mask, None, use_cache=False)
    return _apply_score(base, outputs.last_hidden_state)


def last_positions(attention_mask: Tensor) -> Tensor:
    """Index of the last real token of each row, `(M,)`, of a mask `(M, T)`; right for any padding side."""
    return (attention_mask.long() * torch.arange(attention_mask.shape[1], device=attention_mask.device)).argmax(-1)


def _score_last_tokens(model, input_ids, attention_mask, position_ids, **kwargs) -> SequenceClassifierOutputWithPast:
    outputs = _run_backbone(model, input_ids, attention_mask, position_ids, **kwargs)
    hidden = outputs.last_hidden_state  # (M, T, H)
    if attention_mask is not None:
        last = last_positions(attention_mask[:, -hidden.shape[1] :])  # a mask may cover a prefix in the cache, too
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), last]
    elif len(hidden) == 1:
        pooled = hidden[:, -1]
    else:
        raise ValueError("attention_mask is missing: without it nobody knows where each of several texts ends")
    return SequenceClassifierOutputWithPast(
        logits=_apply_score(model, pooled),
        past_key_values=outputs.past_key_values,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


def _score_in_chunks(
    model,
    input_ids: Tensor,
    attention_mask: Tensor,
    chunk_size: int,
    *,
    share_prefix: bool,
    max_packed_tokens: int | None,
    **kwargs,
) -> Tensor:
    """Scores `(M, K)`, `chunk_size` texts at a time, each chunk cut to its longest text or to its distinct tokens.

    In the backward pass autograd runs the chunks one after another, last first, and `checkpoint` recomputes each when
    its turn comes, so that the activations of one chunk are alive at a time. This is the two-pass score cache
    (Gao et al. 2021, arXiv 2101.06983) inside one forward of the wrapped model, which DDP and FSDP2 need.
    """

    def score_chunk(ids, mask, packed):
        if packed is None:
            return _score_last_tokens(model, ids, mask, None, **kwargs).logits
        backbone = getattr(model, model.base_model_prefix)
        return _apply_score(model, backbone(ids, packed=packed, **kwargs).last_hidden_state[:, 0])

    pack = functools.partial(_pack_texts, max_packed_tokens=max_packed_tokens, cost=row_cost(model))
    if share_prefix:
        both = torch.stack([input_ids, attention_mask.to(input_ids)]).cpu()  # one wait for the device
        texts, ends = _texts(*both), last_positions(both[1]) + 1
    else:
        texts, ends = [], (last_positions(attention_mask) + 1).cpu()
    if len(input_ids) <= chunk_size:
        length, packed = int(ends.max()), pack(texts)
        packed = None if packed is None else packed.to(input_ids.device)
        return score_chunk(input_ids[:, :length], attention_mask[:, :length], packed)
    if texts and pack(texts) is not None:
        order = torch.tensor(sorted(range(len(texts)), key=texts.__getitem__))  # what begins alike stays together
    else:
        order = ends.argsort(descending=True)
    # The longest first, so that a batch too large fails at once.
    chunks = sorted(order.split(chunk_size), key=lambda rows: -int(ends[rows].max()))
    order = torch.cat(chunks)
    order_on_device, back = torch.stack([order, order.argsort()]).to(input_ids.device)  # one copy, which is waited for
    scores = []
    for rows, rows_on_device in zip(chunks, order_on_device.split(list(map(len, chunks))), strict=True):
        length = int(ends[rows].max())
        packed = pack([texts[row] for row in rows]) if share_prefix else None
        packed = None if packed is None else packed.to(input_ids.device)
        chunk = input_ids[rows_on_device, :length], attention_mask[rows_on_device, :length], packed
        if torch.is_grad_enabled():
            scores.append(checkpoint(score_chunk, *chunk, use_reentrant=False))
        else:
            scores.append(score_chunk(*chunk))
    return torch.cat(scores)[back]


def _texts(input_ids: Tensor, attention_mask: Tensor) -> list[list[int]]:
    """Token ids of each text without padding."""
    both = zip(input_ids.tolist(), attention_mask.tolist(), strict=True)
    return [[token for token, is_real in zip(ids, mask, strict=True) if is_real] for ids, mask in both]


def _pack_texts(texts: Sequence[Sequence[int]], **settings: Any) -> PackedRows | None:
    """Packed rows that answer with the last token of each text, or None where nothing is shared."""
    return pack_rows(texts, [len(text) - 1 for text in texts], width=1, **settings)


def _run_backbone(model, input_ids, attention_mask, position_ids, **kwargs):
    if position_ids is None and attention_mask is not None:
        # Counting real tokens makes a text's positions the same whichever side is padded.
        length = (kwargs["inputs_embeds"] if input_ids is None else input_ids).shape[1]
        position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    backbone = getattr(model, model.base_model_prefix)
    return backbone(input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)


def _apply_score(model, hidden: Tensor) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        # float32, but for a model that was loaded without alignkit in another dtype
        scores = model.score(hidden.to(next(model.score.parameters()).dtype)).float()
    cap = settings_of(model.config).get("score_softcap")
    return scores if cap is None else cap * torch.tanh(scores / cap)
