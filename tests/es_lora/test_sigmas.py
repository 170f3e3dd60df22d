"""Each mode of sigma has the size that it names."""

import math

import pytest
import torch
from peft import LoraConfig

from alignkit.es_lora.backends.hf import left_padded
from alignkit.es_lora.sigmas import module_sigmas
from alignkit.tasks.toy import byte_tokenizer
from tests.es_lora.conftest import lively_lm


def inputs_and_outputs(trainer) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """x `(n, H)` and W x `(n, O)` of each module over the tokens of the first step's prompts."""
    sequence = trainer.get_train_dataloader().dataset
    batch = left_padded([sequence[i].ids for i in range(trainer.args.prompts_per_step)], 256, "cpu")
    found, handles = {}, []
    for name, layer in trainer.centre.layers.items():

        def keep(module, args, output, name=name):
            found[name] = args[0][batch[1].bool()], output[batch[1].bool()]

        handles.append(layer.get_base_layer().register_forward_hook(keep))
    with torch.no_grad():
        trainer.model.eval()(batch[0], attention_mask=batch[1])
    for handle in handles:
        handle.remove()
    return found


def measured_shares(trainer, members: int) -> dict[str, float]:
    """√(E Σ ‖ΔW x‖² / Σ ‖W x‖²) of each module from drawn members, x being what the unperturbed model sees."""
    seen, itself = inputs_and_outputs(trainer), trainer.centre.itself()
    shares = {}
    for name, (a, b) in trainer._update.members(list(range(members)), 0, 10).items():
        x, output = seen[name]
        rest = x @ a @ b - x @ itself[name][0] @ itself[name][1]  # (P, tokens, O)
        shares[name] = (rest.square().sum((1, 2)).mean() / output.square().sum()).sqrt().item()
    return shares


@pytest.mark.parametrize("perturb", ["B", "A", "both", "lowrank"])
@pytest.mark.parametrize(("rank", "share"), [(1, 0.05), (8, 0.5)])
def test_output_mode_changes_each_modules_output_by_the_share(make_trainer, perturb, rank, share):
    config = LoraConfig(
        r=rank, lora_alpha=3, target_modules="all-linear", init_lora_weights=perturb not in ("A", "both")
    )
    trainer = make_trainer(
        perturb=perturb, sigma_mode="output", sigma=share, peft_config=config, prompts_per_step=5, antithetic=False
    )
    trainer.before_training(None)
    assert len(set(trainer._update.sigmas.values())) == len(trainer.centre.layers)
    for name, found in measured_shares(trainer, 1000).items():
        assert found == pytest.approx(share, rel=0.1), name


@pytest.mark.parametrize("perturb", ["B", "A", "both", "lowrank"])
def test_output_mode_solves_the_expected_square_of_the_change_for_sigma(make_trainer, perturb):
    model, generator = lively_lm(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.get_input_embeddings().weight[byte_tokenizer().pad_token_id].fill_(0.5)  # padding does not count
    for layer in model.model.layers:  # nor do biases
        layer.self_attn.q_proj.bias = torch.nn.Parameter(torch.randn(32, generator=generator))
    config = LoraConfig(r=4, lora_alpha=3, target_modules="all-linear", init_lora_weights=perturb == "lowrank")
    trainer = make_trainer(model=model, perturb=perturb, sigma_mode="output", sigma=0.5, peft_config=config)
    with torch.no_grad():
        for factor in trainer.centre.trained().values():
            factor.add_(torch.randn(factor.shape, generator=generator), alpha=0.1)
    trainer.before_training(None)
    for name, (x, output) in inputs_and_outputs(trainer).items():
        (a, b), sigma = trainer.centre.factors(name), trainer._update.sigmas[name]
        bias = trainer.centre.layers[name].get_base_layer().bias
        output = output if bias is None else output - bias
        width, rank = b.shape
        of_x, of_ax, of_b = (tensor.double().square().sum().item() for tensor in (x, x @ a.T, b))
        change = {"B": sigma**2 * width * of_ax, "A": sigma**2 * of_b * of_x}
        change["both"] = change["A"] + change["B"] + sigma**4 * width * rank * of_x
        change = {mode: (3 / 4) ** 2 * square for mode, square in change.items()}
        change["lowrank"] = sigma**2 * width * of_x
        assert change[perturb] / output.double().square().sum().item() == pytest.approx(0.5**2, rel=1e-4), name


@pytest.mark.parametrize("perturb", ["B", "lowrank"])
def test_output_mode_refuses_a_module_that_sees_nothing_but_zeros(make_trainer, perturb):
    model = lively_lm()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.zero_()
    trainer = make_trainer(model=model, perturb=perturb, sigma_mode="output", sigma=0.5)
    with pytest.raises(
        ValueError, match=r"1\.mlp\.down_proj: sigma_mode='output' gives sigma 0\.0; the module's weights or inputs"
    ):
        trainer.before_training(None)


@pytest.mark.parametrize("sigma", [0.0, math.inf, math.nan])
def test_a_size_that_is_no_size_is_refused_by_its_module(make_trainer, sigma):
    trainer, nothing = make_trainer(), torch.zeros(1, 0)
    with pytest.raises(ValueError, match=f"q_proj: sigma_mode='weight' gives sigma {sigma}; the module's weights"):
        module_sigmas(trainer.centre, trainer.model, "weight", sigma, nothing, nothing)


def test_output_mode_calibrates_a_model_in_half_precision(make_trainer):
    trainer = make_trainer(model=lively_lm().bfloat16(), sigma_mode="output", sigma=0.5, perturb="B")
    trainer.before_training(None)
    whole = make_trainer(sigma_mode="output", sigma=0.5, perturb="B")
    whole.before_training(None)
    assert trainer._update.sigmas == pytest.approx(whole._update.sigmas, rel=0.05)


def test_adaptive_mode_is_a_tenth_of_the_mean_weight_times_a_scale_that_differs_at_step_0(make_trainer):
    trainer = make_trainer(sigma_mode="adaptive", init_scale=3.0, perturb_scale=0.5)
    trainer.before_training(None)
    base = lively_lm()
    for step, scale in ((0, 3.0), (1, 0.5), (7, 0.5)):
        for name, sigma in trainer._update.sigmas_at(step, 10).items():
            mean = base.get_submodule(name).weight.abs().mean().item()
            assert sigma == pytest.approx(0.1 * mean * scale, rel=1e-6)


def test_a_schedule_moves_sigma_to_its_end(make_trainer):
    trainer = make_trainer(sigma=0.1, sigma_schedule="linear", sigma_end=0.02)
    trainer.before_training(None)
    found = [next(iter(trainer._update.sigmas_at(step, 4).values())) for step in range(5)]
    assert found == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02])


def test_weight_mode_is_the_std_of_the_noise_on_each_factor(make_trainer):
    trainer = make_trainer(sigma=0.3, peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"]))
    trainer.before_training(None)
    members = trainer._update.members(range(100), 0, 10)
    for name, (a, b) in members.items():
        centre_a, centre_b = trainer.centre.itself()[name]
        assert (a - centre_a).std().item() == pytest.approx(0.3, rel=0.05)
        assert (b - centre_b).std().item() == pytest.approx(0.3 * 2, rel=0.05)  # with the scaling α / r in it


def test_calibrating_on_many_prompts_takes_a_few_at_a_time_and_gives_the_same_size(make_trainer, monkeypatch):
    settings = {"sigma_mode": "output", "sigma": 0.1, "perturb": "B", "prompts_per_step": 20}
    trainer, whole = make_trainer(**settings), make_trainer(**settings)
    rows = []
    trainer.model.get_base_model().register_forward_pre_hook(lambda module, args: rows.extend(map(len, args)))
    trainer.before_training(None)
    assert rows[-3:] == [8, 8, 4]  # after the canaries
    monkeypatch.setattr("alignkit.es_lora.sigmas.AT_A_TIME", 20)
    whole.before_training(None)
    assert trainer._update.sigmas == pytest.approx(whole._update.sigmas, rel=1e-6)
