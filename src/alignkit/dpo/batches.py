"""The collator that a trainer's configuration asks for, and models that run its shared prompts."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from alignkit.dpo.collator import PairCollator
from alignkit.dpo.config import ScheduledDPOConfig
from alignkit.shared_prefix import row_cost, share_prefix, why_not_shared

logger = logging.getLogger(__name__)


def make_collator(
    args: ScheduledDPOConfig, models: Sequence[nn.Module], pad_token_id: int, *, has_aux_loss: bool
) -> PairCollator:
    """The collator of a training; patches the models where prompts can be shared.

    Args:
        args: the configuration.
        models: the policy, and its reference where that is a model of its own; not wrapped.
        pad_token_id: id put into padding.
        has_aux_loss: whether an auxiliary loss of a mixture of experts is trained.
    """
    shares = args.share_prefix and can_share(models, has_aux_loss=has_aux_loss)
    if shares:
        for model in models:
            share_prefix(model)
    multiple: Any = args.pad_to_multiple_of  # the parent has made a number of "auto"
    return PairCollator(
        pad_token_id,
        max_prompt_length=args.max_prompt_length,
        max_length=args.max_length,
        prompt_truncation=args.prompt_truncation,
        pad_to_multiple_of=multiple,
        share_prefix=shares,
        max_packed_tokens=args.max_packed_tokens,
        cost=row_cost(models[0]),
        with_keys=args.precompute_ref_log_probs,
    )


def can_share(models: Sequence[nn.Module], *, has_aux_loss: bool) -> bool:
    """Whether all models can run shared prompts; if not, one line of the log says why."""
    reasons = [reason for model in models if (reason := why_not_shared(model)) is not None]
    if has_aux_loss:
        reasons.append("the auxiliary loss of a mixture of experts counts the tokens of whole rows")
    if reasons:
        logger.warning("each completion is run with a prompt of its own: %s", reasons[0])
    return not reasons
