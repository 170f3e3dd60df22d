"""alignkit: alignment methods that Hugging Face TRL does not have.

The public names are imported on first use (PEP 562), so that `import alignkit` stays fast and loads neither TRL,
transformers nor matplotlib.
"""

from typing import TYPE_CHECKING

from alignkit._lazy import lazy_names
from alignkit._version import __version__

if TYPE_CHECKING:
    from alignkit.dpo.config import ScheduledDPOConfig
    from alignkit.dpo.trainer import ScheduledDPOTrainer
    from alignkit.es_lora.config import ESLoRAConfig
    from alignkit.es_lora.trainer import ESLoRATrainer
    from alignkit.fused_head import fused_nll_kl, plain_nll_kl
    from alignkit.kl_barrier.aggregation import aggregate_positions
    from alignkit.kl_barrier.config import KLBarrierConfig
    from alignkit.kl_barrier.trainer import KLBarrierTrainer
    from alignkit.reward_model.config import MultiHeadRewardConfig
    from alignkit.reward_model.trainer import MultiHeadRewardTrainer

__all__ = [
    "ESLoRAConfig",
    "ESLoRATrainer",
    "KLBarrierConfig",
    "KLBarrierTrainer",
    "MultiHeadRewardConfig",
    "MultiHeadRewardTrainer",
    "ScheduledDPOConfig",
    "ScheduledDPOTrainer",
    "__version__",
    "aggregate_positions",
    "fused_nll_kl",
    "plain_nll_kl",
]

_MODULE_OF = {
    "ESLoRAConfig": "alignkit.es_lora.config",
    "ESLoRATrainer": "alignkit.es_lora.trainer",
    "KLBarrierConfig": "alignkit.kl_barrier.config",
    "KLBarrierTrainer": "alignkit.kl_barrier.trainer",
    "MultiHeadRewardConfig": "alignkit.reward_model.config",
    "MultiHeadRewardTrainer": "alignkit.reward_model.trainer",
    "ScheduledDPOConfig": "alignkit.dpo.config",
    "ScheduledDPOTrainer": "alignkit.dpo.trainer",
    "aggregate_positions": "alignkit.kl_barrier.aggregation",
    "fused_nll_kl": "alignkit.fused_head",
    "plain_nll_kl": "alignkit.fused_head",
}

_get, __dir__ = lazy_names(__name__, _MODULE_OF)


def __getattr__(name: str) -> object:
    if _MODULE_OF.get(name, "").endswith((".config", ".trainer")):  # which may fail to import over another TRL
        from alignkit.versions import check_versions

        check_versions()
    return _get(name)
