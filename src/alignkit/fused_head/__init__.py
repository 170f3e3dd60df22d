"""Per-position NLL, KL to a reference, entropy and top-1 from hidden states, without whole logits."""

from alignkit.fused_head.function import fused_nll_kl, token_statistics
from alignkit.fused_head.plain import HeadStatistics, KLDirection, TokenStatistics, plain_nll_kl

__all__ = ["HeadStatistics", "KLDirection", "TokenStatistics", "fused_nll_kl", "plain_nll_kl", "token_statistics"]
