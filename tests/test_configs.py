"""Every configuration works on a command line."""

import pytest
from trl import TrlParser

from alignkit import ESLoRAConfig, KLBarrierConfig, MultiHeadRewardConfig, ScheduledDPOConfig


@pytest.mark.parametrize("config", [ESLoRAConfig, KLBarrierConfig, MultiHeadRewardConfig, ScheduledDPOConfig])
def test_the_help_of_every_option_can_be_printed(config):
    text = TrlParser((config,)).format_help()
    assert all(f"--{name} " in text for name in config.__dataclass_fields__)
