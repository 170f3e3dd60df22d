"""The reference of a policy: what it is for each choice, and that running it leaves no trace."""

import copy
import time

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from trl.trainer.utils import add_fused_lm_head

from alignkit.reference import ReferenceManager
from alignkit.tasks.toy import tiny_causal_lm

TOKENS = torch.arange(5, 25).reshape(2, 10)


def lora(model: nn.Module | None = None, **config) -> PeftModel:
    """A LoRA on attention's q and v, in train mode, with dropout so that eval mode is seen in the outputs."""
    settings = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.3, "target_modules": ["q_proj", "v_proj"], **config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return get_peft_model(model or tiny_causal_lm(), LoraConfig(task_type="CAUSAL_LM", **settings)).train()


def train(model: nn.Module, shift: float = 0.05) -> nn.Module:
    """Move every parameter that trains, as an optimiser would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(shift)
    return model


@torch.no_grad()
def outputs(model: nn.Module) -> torch.Tensor:
    return model(TOKENS).logits


def evaluated(model: nn.Module) -> torch.Tensor:
    """Outputs of a copy of the model in eval mode."""
    return outputs(copy.deepcopy(model).eval())


def seen(manager: ReferenceManager, model: nn.Module) -> torch.Tensor:
    with manager.active(model) as ref:
        return ref(TOKENS).logits


def is_same_after(model: nn.Module, action) -> bool:
    """Whether weights, flags, hooks and modes are what they were before the action."""

    def state():
        return (
            {name: tensor.clone() for name, tensor in model.state_dict().items()},
            {name: parameter.requires_grad for name, parameter in model.named_parameters()},
            {name: module.training for name, module in model.named_modules()},
            {
                name: len(module._forward_hooks) + len(module._forward_pre_hooks)
                for name, module in model.named_modules()
            },
        )

    weights, *before = state()
    action()
    weights_after, *after = state()
    return before == after and all(torch.equal(weights[name], weights_after[name]) for name in weights | weights_after)


# What the reference is


def test_a_fresh_adapter_is_compared_with_the_base_and_starts_without_divergence():
    base = tiny_causal_lm()
    model = lora(base, lora_dropout=0.0)
    manager = ReferenceManager(model, None)
    assert manager.kind == "base" and manager.ref_model is None
    assert torch.equal(seen(manager, model), outputs(model))


def test_the_base_stays_the_reference_while_the_adapter_trains():
    model = lora()
    expected = evaluated(tiny_causal_lm())
    manager = ReferenceManager(model, "base")
    train(model)
    assert torch.equal(seen(manager, model), expected)
    assert not torch.allclose(evaluated(model), expected, atol=1e-4)


@pytest.mark.parametrize("ref", ["base", "adapter"])
def test_a_trained_adapter_needs_a_word_on_what_to_compare_with(ref):
    model = train(lora())
    with pytest.raises(ValueError, match=r'not a fresh one.*ref="base".*ref="adapter"'):
        ReferenceManager(model, None)
    assert ReferenceManager(model, ref).kind == ref


@pytest.mark.parametrize("initialisation", [True, "gaussian", "mica"])
def test_every_initialisation_that_changes_nothing_counts_as_fresh(initialisation):
    assert ReferenceManager(lora(init_lora_weights=initialisation), None).kind == "base"


@pytest.mark.parametrize("initialisation", [False, "orthogonal"])
def test_an_initialisation_that_changes_the_model_does_not_count_as_fresh(initialisation):
    with pytest.raises(ValueError, match="not a fresh one"):
        ReferenceManager(lora(init_lora_weights=initialisation), None)


def test_a_module_trained_whole_counts_towards_freshness():
    model = lora(modules_to_save=["lm_head"])
    assert ReferenceManager(model, None).kind == "base"
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight[0, 0] += 1
    with pytest.raises(ValueError, match="not a fresh one"):
        ReferenceManager(model, None)


def test_rows_of_the_embedding_trained_alone_count_and_are_switched_off():
    base = tiny_causal_lm()
    model = lora(copy.deepcopy(base), trainable_token_indices=[5, 6])
    manager = ReferenceManager(model, None)
    train(model)
    assert torch.equal(seen(manager, model), evaluated(base))
    with pytest.raises(ValueError, match="not a fresh one"):
        ReferenceManager(model, None)


def test_the_freshness_of_another_adapter_type_is_asked_for():
    model = get_peft_model(
        tiny_causal_lm(), IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    )
    with pytest.raises(ValueError, match="type IA3"):
        ReferenceManager(model, None)
    manager = ReferenceManager(model, "base")
    train(model)
    assert torch.equal(seen(manager, model), evaluated(tiny_causal_lm()))
    with pytest.raises(ValueError, match=r'IA3 cannot be copied.*ref="copy"'):
        ReferenceManager(model, "adapter")


@pytest.mark.parametrize("initialisation", ["pissa", "pissa_niter_2", "olora"])
def test_an_initialisation_that_rewrote_the_base_is_compared_with_the_starting_adapter(initialisation):
    model = lora(init_lora_weights=initialisation)
    original = evaluated(tiny_causal_lm())
    with pytest.raises(ValueError, match="has rewritten the base weights"):
        ReferenceManager(model, "base")
    manager = ReferenceManager(model, None)
    assert manager.kind == "adapter"
    train(model)
    torch.testing.assert_close(seen(manager, model), original, atol=1e-5, rtol=1e-4)


def test_a_frozen_copy_of_the_adapter_keeps_its_weights_and_its_scaling():
    model = train(lora(modules_to_save=["lm_head"], use_rslora=True))
    model.get_base_model().model.layers[0].self_attn.q_proj.set_scale("default", 3.0)
    expected = evaluated(model)
    manager = ReferenceManager(model, "adapter")
    assert torch.equal(evaluated(model), expected)
    train(model)
    assert torch.equal(seen(manager, model), expected)


def test_the_copied_adapter_never_trains_and_changes_no_other_flag():
    model = train(lora(modules_to_save=["lm_head"]))
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    ReferenceManager(model, "adapter")
    after = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert before == {name: after[name] for name in before}
    assert len(after) > len(before) and not any(after[name] for name in after.keys() - before.keys())
    assert model.active_adapters == ["default"]


def test_a_ref_adapter_of_the_parent_trainer_is_taken_and_another_is_refused():
    model = train(lora())
    ReferenceManager(model, "adapter")
    assert ReferenceManager(model, "adapter").kind == "adapter"
    train(model)
    with pytest.raises(ValueError, match=r"'ref' that differs from 'default'.*delete_adapter"):
        ReferenceManager(model, "adapter")


def two_rounds() -> tuple[PeftModel, torch.Tensor]:
    """A model with a frozen adapter of an earlier round and a trained one, both active; and the earlier outputs."""
    model = train(lora())
    earlier = evaluated(model)
    model.add_adapter("second", LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "o_proj"]))
    model.base_model.set_adapter(["default", "second"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".second." in name)
    return train(model), earlier


def test_the_previous_rounds_are_the_active_adapters_that_do_not_train():
    model, earlier = two_rounds()
    manager = ReferenceManager(model, "previous")
    assert torch.equal(seen(manager, model), earlier)
    assert torch.equal(seen(ReferenceManager(model, "base"), model), evaluated(tiny_causal_lm()))


def test_frozen_rounds_under_a_fresh_adapter_need_a_word_on_what_to_compare_with():
    with pytest.raises(ValueError, match=r"frozen adapters \['default'\].*ref=\"previous\".*ref=\"base\""):
        ReferenceManager(two_rounds()[0], None)


def test_a_copied_adapter_acts_together_with_the_previous_rounds():
    model, _ = two_rounds()
    expected = evaluated(model)
    requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    manager = ReferenceManager(model, "adapter")
    assert requires_grad.items() <= {name: p.requires_grad for name, p in model.named_parameters()}.items()
    train(model)
    assert torch.equal(seen(manager, model), expected)


def test_without_earlier_rounds_the_previous_model_is_the_base():
    model = train(lora(modules_to_save=["lm_head"]))
    assert torch.equal(seen(ReferenceManager(model, "previous"), model), evaluated(tiny_causal_lm()))


def test_a_fully_trained_model_is_compared_with_a_frozen_copy_without_patches():
    model = tiny_causal_lm().train()
    expected = evaluated(model)
    add_fused_lm_head(model)
    manager = ReferenceManager(model, None)
    assert manager.kind == "copy" and "forward" not in manager.ref_model.__dict__
    assert not manager.ref_model.training and not any(p.requires_grad for p in manager.ref_model.parameters())
    train(model)
    assert torch.equal(seen(manager, model), expected)


def test_a_copy_of_a_model_with_adapters_keeps_all_of_them():
    model, _ = two_rounds()
    expected = evaluated(model)
    add_fused_lm_head(model.get_base_model())
    manager = ReferenceManager(model, "copy")
    train(model)
    assert torch.equal(seen(manager, model), expected)


def test_a_path_is_loaded_in_the_dtype_of_the_policy(tmp_path):
    other = tiny_causal_lm(seed=7)
    other.save_pretrained(tmp_path)
    model = tiny_causal_lm().bfloat16()
    manager = ReferenceManager(model, str(tmp_path))
    assert manager.kind == "model" and manager.ref_model.dtype == torch.bfloat16
    assert not hasattr(manager.ref_model, "_hf_hook")
    assert torch.equal(manager.ref_model.lm_head.weight, other.lm_head.weight.bfloat16())


def test_a_given_model_is_frozen_and_used_as_it_is():
    model, other = lora(), tiny_causal_lm(seed=7).train()
    manager = ReferenceManager(model, None, ref_model=other)
    assert manager.kind == "model" and manager.ref_model is other
    assert not other.training and not any(parameter.requires_grad for parameter in other.parameters())


# Averages


def test_the_average_of_an_adapter_follows_the_policy_by_hand():
    model = train(lora())
    manager = ReferenceManager(model, "ema", ema_decay=0.75)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj.lora_B
    start = layer["default"].weight.clone()
    train(model, shift=1.0)
    manager.update()
    torch.testing.assert_close(layer["ref"].weight, start + 0.25)
    train(model, shift=1.0)
    manager.update()
    torch.testing.assert_close(layer["ref"].weight, start + 0.25 + 0.25 * 1.75)
    assert not layer["ref"].weight.requires_grad


def test_the_average_of_a_full_model_moves_only_what_trains():
    model = tiny_causal_lm()
    model.model.embed_tokens.requires_grad_(False)
    manager = ReferenceManager(model, "ema", ema_decay=0.5)
    start = model.lm_head.weight.detach().clone()
    train(model, shift=1.0)
    model.model.embed_tokens.weight.data += 1
    manager.update()
    torch.testing.assert_close(manager.ref_model.lm_head.weight, start + 0.5)
    assert torch.equal(manager.ref_model.model.embed_tokens.weight, tiny_causal_lm().model.embed_tokens.weight)


def test_an_average_in_bfloat16_does_not_lose_small_steps():
    model = tiny_causal_lm().bfloat16()
    with torch.no_grad():
        model.lm_head.weight.fill_(1.0)
    manager = ReferenceManager(model, "ema", ema_decay=0.99)
    with torch.no_grad():
        model.lm_head.weight.fill_(1.0625)
    for _ in range(100):
        manager.update()
    # 1 + 0.0625 (1 - 0.99^100) = 1.0396; a step of 0.0006 is far below bfloat16's resolution of 0.0078 at 1.
    torch.testing.assert_close(manager.ref_model.lm_head.weight[0, 0].float().item(), 1.0396, atol=0.004, rtol=0)


@pytest.mark.parametrize("make", [lambda: train(lora()), tiny_causal_lm, lambda: tiny_causal_lm().bfloat16()])
def test_an_average_goes_on_from_its_checkpoint(make):
    model = make()
    manager = ReferenceManager(model, "ema", ema_decay=0.9)
    train(model)
    manager.update()
    resumed_model = make()
    resumed = ReferenceManager(resumed_model, "ema", ema_decay=0.9)
    train(resumed_model)
    resumed.load_state_dict(copy.deepcopy(manager.state_dict()))
    for each, policy in ((manager, model), (resumed, resumed_model)):
        train(policy)
        each.update()
    assert torch.equal(seen(manager, model), seen(resumed, resumed_model))


def test_an_average_of_another_model_is_refused():
    manager = ReferenceManager(tiny_causal_lm(), "ema")
    with pytest.raises(ValueError, match="of another model"):
        manager.load_state_dict(ReferenceManager(tiny_causal_lm(layers=1), "ema").state_dict())
    with pytest.raises(ValueError, match="reference is 'copy'"):
        ReferenceManager(tiny_causal_lm(), None).load_state_dict(manager.state_dict())


def test_kinds_without_an_average_have_nothing_to_save():
    manager = ReferenceManager(lora(), None)
    manager.update()
    assert manager.state_dict() == {}
    manager.load_state_dict({})


# Running it leaves no trace


def mixed_modes(model: nn.Module) -> nn.Module:
    """One layer in eval mode, as a user may have set it."""
    model.get_base_model().model.layers[0].eval()
    return model


@pytest.mark.parametrize("ref", ["base", "adapter", "previous", "ema"])
def test_a_hundred_uses_leave_weights_flags_hooks_and_modes_as_they_were(ref):
    model = mixed_modes(train(lora(modules_to_save=["lm_head"], trainable_token_indices=[5])))
    model.get_base_model().gradient_checkpointing_enable()
    manager = ReferenceManager(model, ref)

    def use():
        for _ in range(100):
            with manager.active(model):
                pass
        seen(manager, model)

    assert is_same_after(model, use)
    assert model.get_base_model().is_gradient_checkpointing
    assert model.active_adapters == ["default"]


@pytest.mark.parametrize("ref", ["base", "adapter"])
def test_the_adapters_of_196_modules_are_switched_and_back_in_two_milliseconds(ref):
    model = lora(tiny_causal_lm(layers=28), target_modules="all-linear")
    manager = ReferenceManager(train(model), ref)
    assert sum(isinstance(module, LoraLayer) for module in model.modules()) == 196
    times_s = []
    for _ in range(30):  # the shortest, because other processes may be running
        start = time.perf_counter()
        with manager.active(model):
            pass
        times_s.append(time.perf_counter() - start)
    assert min(times_s) < 2e-3


@pytest.mark.parametrize("ref", ["base", "adapter", "copy"])
def test_the_reference_runs_in_eval_mode_without_gradients(ref):
    model = train(lora())
    manager = ReferenceManager(model, ref)
    with manager.active(model) as module:
        assert not any(part.training for part in module.modules())
        assert not module(TOKENS).logits.requires_grad
    assert torch.is_grad_enabled()


def test_an_error_inside_leaves_no_trace_either():
    model = mixed_modes(train(lora(modules_to_save=["lm_head"])))
    manager = ReferenceManager(model, "base")

    def fail():
        with pytest.raises(RuntimeError), manager.active(model):
            raise RuntimeError

    assert is_same_after(model, fail)
    assert torch.is_grad_enabled()


def test_gradients_of_the_policy_are_the_same_with_and_without_a_reference_pass():
    gradients = []
    for uses in (0, 1):
        model = train(lora(lora_dropout=0.0))
        manager = ReferenceManager(model, "base")
        loss = model(TOKENS, labels=TOKENS).loss
        for _ in range(uses):
            seen(manager, model)
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_an_adapter_added_later_is_switched_off_too():
    model = lora()
    manager = ReferenceManager(model, "base")
    expected = seen(manager, model)
    model.add_adapter("later", LoraConfig(task_type="CAUSAL_LM", target_modules=["o_proj"], init_lora_weights=False))
    model.set_adapter("later")
    assert torch.equal(seen(manager, model), expected)


def test_a_wrapped_policy_comes_back_as_it_was_given():
    class Wrapped(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args):
            return self.module(*args)

    model = train(lora())
    manager, wrapped = ReferenceManager(model, "base"), Wrapped(model)
    with manager.active(wrapped) as ref:
        assert ref is wrapped
        assert torch.equal(ref(TOKENS).logits, evaluated(tiny_causal_lm()))
    other = ReferenceManager(model, "copy")
    with other.active(wrapped) as ref:
        assert ref is other.ref_model


# The head


def test_the_weight_of_the_head_is_the_original_one_inside():
    model = train(lora(modules_to_save=["lm_head"]))
    manager = ReferenceManager(model, "base")
    with manager.active(model) as ref:
        inside = ref.get_base_model().get_output_embeddings().weight
    assert torch.equal(inside, tiny_causal_lm().lm_head.weight)
    assert not torch.equal(model.get_base_model().get_output_embeddings().weight, inside)


@pytest.mark.parametrize(
    ("config", "ref", "shared"),
    [
        ({}, "base", True),
        ({}, "adapter", True),
        ({}, "previous", True),
        ({"modules_to_save": ["lm_head"]}, "base", False),
        ({"modules_to_save": ["lm_head"]}, "adapter", False),
        ({"modules_to_save": ["embed_tokens"]}, "base", True),
        ({"target_modules": ["q_proj", "lm_head"]}, "base", False),
        ({}, "copy", False),
    ],
)
def test_the_head_is_shared_only_if_it_is_one_frozen_tensor(config, ref, shared):
    assert ReferenceManager(lora(**config), ref).shares_head is shared


def test_a_fully_trained_model_shares_no_head():
    assert ReferenceManager(tiny_causal_lm(), None).shares_head is False


# The fingerprint


def test_the_fingerprint_of_the_base_ignores_the_adapter_and_equals_that_of_the_plain_model():
    plain = ReferenceManager(tiny_causal_lm(), "copy").fingerprint()
    for model in (
        lora(),
        train(lora(r=2)),
        train(lora(modules_to_save=["lm_head"], trainable_token_indices=[5])),
        two_rounds()[0],
    ):
        manager = ReferenceManager(model, "base")
        assert manager.fingerprint() == plain
        train(model)
        assert manager.fingerprint() == plain


def test_the_fingerprint_notices_a_weight_a_dtype_and_a_setting():
    prints = {ReferenceManager(tiny_causal_lm(), "copy").fingerprint()}
    changed = tiny_causal_lm()
    with torch.no_grad():
        changed.lm_head.weight[3, 3] += 1e-6
    prints.add(ReferenceManager(changed, "copy").fingerprint())
    prints.add(ReferenceManager(tiny_causal_lm().bfloat16(), "copy").fingerprint())
    changed = tiny_causal_lm()
    changed.config.rms_norm_eps *= 2
    prints.add(ReferenceManager(changed, "copy").fingerprint())
    changed = tiny_causal_lm()
    changed.model.rotary_emb.bfloat16()  # not in the state dict, but rounds the positions
    prints.add(ReferenceManager(changed, "copy").fingerprint())
    assert len(prints) == 5


def test_the_fingerprint_does_not_notice_what_training_sets():
    before = ReferenceManager(tiny_causal_lm(), "copy").fingerprint()
    model = tiny_causal_lm().train()
    model.config.use_cache = False
    model.config.pad_token_id = 0
    model.gradient_checkpointing_enable()
    assert ReferenceManager(model, "copy").fingerprint() == before


def test_the_fingerprint_of_an_adapter_covers_its_weights_and_its_scaling():
    manager = ReferenceManager(model := train(lora()), "adapter")
    before = manager.fingerprint()
    train(model)
    assert manager.fingerprint() == before
    other = train(train(lora()))
    assert ReferenceManager(other, "adapter").fingerprint() != before
    scaled = train(lora())
    scaled.get_base_model().model.layers[0].self_attn.q_proj.set_scale("default", 3.0)
    assert ReferenceManager(scaled, "adapter").fingerprint() != before
    assert ReferenceManager(train(lora()), "adapter").fingerprint() == before


# What is refused


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match="ema_decay"):
        ReferenceManager(tiny_causal_lm(), "ema", ema_decay=decay)


def test_two_references_at_once_are_refused():
    with pytest.raises(ValueError, match=r"both ref='copy' and ref_model"):
        ReferenceManager(tiny_causal_lm(), "copy", ref_model=tiny_causal_lm())


@pytest.mark.parametrize("wrap", [lambda model: model, lora])
def test_the_policy_itself_and_the_model_inside_it_are_refused_as_reference(wrap):
    base = tiny_causal_lm()
    with pytest.raises(ValueError, match="shares its parameters"):
        ReferenceManager(wrap(base), None, ref_model=base)


def test_another_vocabulary_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match=r"vocabulary of 300 tokens, the policy of 259"):
        ReferenceManager(tiny_causal_lm(), None, ref_model=tiny_causal_lm(vocab_size=300))


@pytest.mark.parametrize(
    ("field", "value", "transform"),
    [
        ("final_logit_softcapping", 30.0, r"\(30.0, 1.0\)"),
        ("logit_scale", 0.5, r"\(None, 0.5\)"),
        ("logits_scaling", 4.0, r"\(None, 0.25\)"),
    ],
)
def test_another_treatment_of_the_logits_is_refused(field, value, transform):
    other = tiny_causal_lm()
    setattr(other.config, field, value)
    with pytest.raises(ValueError, match=rf"{transform} in the reference and \(None, 1.0\)"):
        ReferenceManager(tiny_causal_lm(), None, ref_model=other)


@pytest.mark.parametrize("ref", ["base", "adapter", "previous"])
def test_a_model_without_adapters_has_no_adapter_reference(ref):
    with pytest.raises(ValueError, match=rf"ref='{ref}' needs a model with a PEFT adapter"):
        ReferenceManager(tiny_causal_lm(), ref)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"ref='bsae' is none of base, adapter"):
        ReferenceManager(tiny_causal_lm(), "bsae")


@pytest.mark.parametrize("ref", [None, "base"])
def test_a_merged_adapter_is_refused(ref):
    model = lora()
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"\['default'\] are merged"):
        ReferenceManager(model, ref)


@pytest.mark.parametrize("ref", [None, "base", "adapter"])
def test_prompt_learning_is_refused(ref):
    model = get_peft_model(tiny_causal_lm(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="PROMPT_TUNING cannot be switched off"):
        ReferenceManager(model, ref)


def test_weights_that_train_outside_the_adapter_are_refused():
    model = lora()
    model.get_base_model().model.norm.requires_grad_(True)
    with pytest.raises(ValueError, match=r"1 parameters outside the adapters train, such as .*norm.weight"):
        ReferenceManager(model, None)
    assert ReferenceManager(model, "copy").kind == "copy"


def test_an_adapter_that_does_not_train_is_refused(tmp_path):
    lora().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is_trainable=True"):
        ReferenceManager(PeftModel.from_pretrained(tiny_causal_lm(), tmp_path), None)


def test_several_trained_adapters_cannot_be_copied():
    model = lora()
    model.add_adapter("second", LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"\['default', 'second'\] all train"):
        ReferenceManager(model, "adapter")
