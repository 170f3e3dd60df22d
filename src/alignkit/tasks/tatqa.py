"""TAT-QA (Zhu et al. 2021): questions about a table and passages of a financial report, as prompts and as pairs."""

from alignkit.tasks.tatqa_corruptions import CORRUPTIONS
from alignkit.tasks.tatqa_files import check_contexts, load_tatqa
from alignkit.tasks.tatqa_pairs import PairReport, tatqa_pairs
from alignkit.tasks.tatqa_prompts import STOP_STRINGS, PromptForm, PromptTooLongError, tatqa_prompts

__all__ = [
    "CORRUPTIONS",
    "STOP_STRINGS",
    "PairReport",
    "PromptForm",
    "PromptTooLongError",
    "check_contexts",
    "load_tatqa",
    "tatqa_pairs",
    "tatqa_prompts",
]
