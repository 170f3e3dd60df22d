"""Size of the noise, module by module.

    "weight"    σ for all modules
    "output"    σ of a module such that √(E Σ_t ‖ΔW x_t‖² / Σ_t ‖W x_t‖²) is the wanted share over a batch of prompts
    "adaptive"  10 % of the module's mean |W|; biases do not count

The expectation is exact, so that calibrating takes one forward pass and no random number: with s the scaling, R the
rank and O the width of the output,

    E ‖ΔW x‖² = s² (σ² (O ‖A x‖² + ‖B‖² ‖x‖²) + σ⁴ O R ‖x‖²)   "both"; "B" has the first term, "A" the second
    E ‖ΔW x‖² = σ² O ‖x‖²                                      "lowrank"
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor

from alignkit.es_lora.centre import Centre
from alignkit.es_lora.grouped_lora import evaluation_mode, with_additions

SigmaMode = Literal["weight", "output", "adaptive"]
ADAPTIVE_SHARE = 0.1
AT_A_TIME = 8
"""Prompts of a calibrating forward pass, whose logits are larger than those of any step of `generate`."""


def module_sigmas(
    centre: Centre, model: PeftModel, mode: SigmaMode, sigma: float, input_ids: Tensor, attention_mask: Tensor
) -> dict[str, float]:
    """Std of the noise of each module.

    Args:
        sigma (`float`): as the mode reads it; `"adaptive"` does not.
        input_ids, attention_mask (`Tensor`, (M, T)): the prompts on which `"output"` is calibrated.

    Raises:
        ValueError: a module for which the size would be 0.
    """
    if mode == "weight":
        sigmas = dict.fromkeys(centre.layers, sigma)
    elif mode == "adaptive":
        sigmas = {
            name: ADAPTIVE_SHARE * dequantize_module_weight(layer.get_base_layer()).float().abs().mean().item()
            for name, layer in centre.layers.items()
        }
    else:
        sums = _sums_of_squares(centre, model, input_ids, attention_mask)
        sigmas = {name: _sigma_for_share(centre, name, sigma, sums[name]) for name in centre.layers}
    for name, value in sigmas.items():
        if not 0 < value < math.inf:
            raise ValueError(
                f"{name}: sigma_mode={mode!r} gives sigma {value}; the module's weights or inputs are 0, leave it out"
            )
    return sigmas


@dataclass
class _Squares:
    """Sums over the tokens of a batch."""

    inputs: float = 0.0  # ‖x‖²
    inner: float = 0.0  # ‖A x‖²
    outputs: float = 0.0  # ‖W x‖²


def _sums_of_squares(centre: Centre, model: PeftModel, input_ids: Tensor, mask: Tensor) -> dict[str, _Squares]:
    sums = {name: _Squares() for name in centre.layers}

    def measuring(name: str) -> Any:
        a, b = (factor.detach() for factor in centre.factors(name))
        bias = centre.layers[name].get_base_layer().bias

        def measure(x: Tensor, output: Tensor) -> Tensor:
            x = x.float()
            inner = x @ a.T
            plain = output.float() if bias is None else output.float() - bias.float()
            for field, values in (("inputs", x), ("inner", inner), ("outputs", plain)):
                total = values[real].square().sum(dtype=torch.float64).item()
                setattr(sums[name], field, getattr(sums[name], field) + total)
            return output + (inner @ b.T * centre.scaling(name)).to(output.dtype)

        return measure

    base: Any = model.get_base_model()
    with evaluation_mode(base), with_additions(base, {name: measuring(name) for name in centre.layers}):
        for prompts, mask_of_prompts in zip(input_ids.split(AT_A_TIME), mask.split(AT_A_TIME), strict=True):
            real = mask_of_prompts.bool()
            base(prompts, attention_mask=mask_of_prompts)
    return sums


def _sigma_for_share(centre: Centre, name: str, share: float, sums: _Squares) -> float:
    b = centre.factors(name)[1]
    wanted = share**2 * sums.outputs
    if centre.perturb == "lowrank":
        width = centre.trained()[name].shape[0]
        return math.sqrt(wanted / (width * sums.inputs)) if sums.inputs else 0.0
    wanted /= centre.scaling(name) ** 2
    rank, width = b.shape[1], b.shape[0]
    linear, quadratic = 0.0, 0.0
    if centre.perturb != "A":
        linear += width * sums.inner
    if centre.perturb != "B":
        linear += b.detach().double().square().sum().item() * sums.inputs
    if centre.perturb == "both":
        quadratic = width * rank * sums.inputs
    # The positive root of quadratic σ⁴ + linear σ² = wanted, without the difference of two like numbers.
    denominator = linear + math.sqrt(linear**2 + 4 * quadratic * wanted)
    return math.sqrt(2 * wanted / denominator) if denominator else 0.0
