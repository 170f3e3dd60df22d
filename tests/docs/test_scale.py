"""The tables of the page on scale are what its own arithmetic prints."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/scale.md"


def test_every_row_that_the_arithmetic_prints_stands_in_a_table_of_the_page(capsys):
    text = PAGE.read_text()
    [block] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(block, {})
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 6 + 2 * 6 + 2 + 3
    missing = [row for row in rows if row not in text.splitlines()]
    assert not missing


@pytest.mark.slow
def test_the_inputs_of_the_arithmetic_are_those_of_the_plan():
    from transformers import LlamaConfig

    from alignkit.plan.request import PlanRequest
    from alignkit.plan.sizes import model_sizes

    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    namespace: dict = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0], namespace)
    whole = model_sizes(config, PlanRequest("sft", lora_rank=0))
    assert round(whole.n_parameters, -7) == namespace["PARAMETERS"]["8B"]
    assert round(whole.largest_layer_bytes, -6) == namespace["LARGEST_LAYER"]["8B"]
    assert round(model_sizes(config, PlanRequest("dpo")).n_trained, -5) == namespace["LORA_16"]["8B"]
    assert round(model_sizes(config, PlanRequest("es", lora_rank=8)).n_trained, -5) == namespace["LORA_B_8"]["8B"]
