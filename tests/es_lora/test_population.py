"""A population in one pass equals each member's own PeftModel, and leaves the model as it was."""

from collections import Counter

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    CompileConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from alignkit._compat import keep_cpu_4bit_gradients_right
from alignkit.es_lora.finished_rows import equal_groups
from alignkit.es_lora.population import check_population, evaluate_population, population
from alignkit.kl_barrier.rounds.settings import weights_digest
from alignkit.tasks.toy import tiny_causal_lm

PAD, EOS = 256, 258
SIZES = {
    "vocab_size": 259,
    "pad_token_id": PAD,
    "bos_token_id": 257,
    "eos_token_id": EOS,
    "max_position_embeddings": 64,
}
SMALL = {**SIZES, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
ALPHA, RANK = 6, 3

# Three ragged prompts, padded on the left; the second holds an end token, which ends nothing there.
IDS = torch.tensor([[10, 20, 30, 40, 50], [PAD, PAD, 60, EOS, 80], [PAD, 1, 2, 3, 4]])
MASK = (IDS != PAD).long()


def qwen2():
    return Qwen2ForCausalLM(Qwen2Config(**SMALL, num_key_value_heads=1))


def gpt_neox():
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL))


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=259,
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=2,
            pad_token_id=PAD,
            bos_token_id=257,
            eos_token_id=EOS,
        )
    )


def new_model(build):
    torch.manual_seed(0)
    return build().eval()


def linear_names(model):
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and name not in ("lm_head", "embed_out")
    ]


def random_adapters(model, members, scale=0.3, names=None, seed=1):
    """A and B with the scaling in B, for all linear modules."""
    generator = torch.Generator().manual_seed(seed)
    adapters = {}
    for name in names or linear_names(model):
        module = model.get_submodule(name)
        n_in, n_out = (
            (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)
        )
        adapters[name] = (
            scale * torch.randn(members, n_in, RANK, generator=generator),
            scale * torch.randn(members, RANK, n_out, generator=generator),
        )
    return adapters


def peft_member(model, adapters, member):
    """The member as a PEFT model of its own, with its scaling of 2."""
    transposed = isinstance(model.get_submodule(next(iter(adapters))), Conv1D)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(adapters), fan_in_fan_out=transposed)
    peft_model = get_peft_model(model, config).eval()
    for name, (a, b) in adapters.items():
        layer = peft_model.get_base_model().get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(a[member].T)
        layer.lora_B["default"].weight.data.copy_(b[member].T * RANK / ALPHA)
    return peft_model


def own_results(model, adapters, member, **generate_kwargs):
    """Logits and tokens of one member by itself."""
    peft_model = peft_member(model, adapters, member)
    with torch.no_grad():
        logits = peft_model(IDS, attention_mask=MASK).logits
        tokens = peft_model.generate(input_ids=IDS, attention_mask=MASK, **generate_kwargs)
    peft_model.unload()
    return logits, tokens


def padded(tokens, length):
    return nn.functional.pad(tokens, (0, length - tokens.shape[-1]), value=PAD)


@pytest.mark.parametrize("build", [lambda: tiny_causal_lm(hidden_size=32), qwen2, gpt_neox, gpt2])
def test_every_member_equals_its_own_peft_model_in_logits_and_greedy_tokens(build):
    model = new_model(build)
    adapters = random_adapters(model, members=4)
    tokens = evaluate_population(model, adapters, IDS, MASK, max_new_tokens=6, do_sample=False)
    with population(model, adapters) as base:
        logits = base(IDS.repeat(4, 1), attention_mask=MASK.repeat(4, 1)).logits.view(4, 3, 5, -1)
    distinct = set()
    for member in range(4):
        own_logits, own_tokens = own_results(model, adapters, member, max_new_tokens=6, do_sample=False)
        torch.testing.assert_close(logits[member][MASK.bool()], own_logits[MASK.bool()], rtol=0, atol=1e-5)
        assert torch.equal(tokens[member], padded(own_tokens, tokens.shape[2]))
        distinct.add(str(own_tokens.tolist()))
    assert len(distinct) == 4  # the adapters matter


def ending(model, eos):
    """Keyword arguments with which the tokens `eos` end a completion."""
    return {"max_new_tokens": 24, "do_sample": False, "eos_token_id": eos, "pad_token_id": PAD}


# Without padding, as in the second case, generate passes no mask.
@pytest.mark.parametrize(("prompts", "n_end_tokens"), [(slice(0, 3), 12), (slice(0, 1), 6)])
def test_rows_that_have_ended_leave_the_batch_and_the_tokens_stay_the_same(prompts, n_end_tokens):
    model = new_model(lambda: tiny_causal_lm(hidden_size=32))
    adapters = random_adapters(model, members=6, scale=0.15)
    ids, mask = IDS[prompts], MASK[prompts]
    # Tokens that some rows give soon and others never, so that rows, members and lastly all but a few fall away.
    free = evaluate_population(model, adapters, ids, mask, **ending(model, EOS))[:, :, 5:]
    common = [token for token, _ in Counter(free[:, :, 1:8].flatten().tolist()).most_common(n_end_tokens)]
    rows_per_step = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows_per_step.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    tokens = evaluate_population(model, adapters, ids, mask, **ending(model, common))
    handle.remove()
    with population(model, adapters) as base:  # without leaving
        all_rows = base.generate(ids.repeat(6, 1), attention_mask=mask.repeat(6, 1), **ending(model, common))
    assert torch.equal(tokens, all_rows.view(tokens.shape))
    own = [own_results(model, adapters, member, **ending(model, common))[1][prompts] for member in range(6)]
    length = max(part.shape[1] for part in own)
    assert torch.equal(padded(tokens, length), torch.stack([padded(part, length) for part in own]))
    assert rows_per_step == sorted(rows_per_step, reverse=True)
    assert len(set(rows_per_step)) >= 3  # rows left more than once
    assert len(rows_per_step) > 12


@pytest.mark.parametrize(
    ("rows", "most_groups", "members", "groups"),
    [
        # One endless member keeps its group; size 1 would need two groups more than there may be.
        ([[0, 1, 2], [], []], 2, [0], [[0, 1, 2]]),
        # One row of each of three: groups of one row add none.
        ([[0], [4], [7]], 3, [0, 1, 2], [[0], [4], [7]]),
        # Three and one: in two groups of three, two rows are repeated; in three groups of two, two as well, and the
        # larger size wins; four groups of one add none, where there may be so many.
        ([[0, 1, 2], [5]], 3, [0, 1], [[0, 1, 2], [5, 5, 5]]),
        ([[0, 1, 2], [5]], 4, [0, 0, 0, 1], [[0], [1], [2], [5]]),
        # Four and one: three groups of two repeat one row, two of four repeat three.
        ([[0, 1, 2, 3], [5]], 3, [0, 0, 1], [[0, 1], [2, 3], [5, 5]]),
    ],
)
def test_rows_are_put_into_the_equal_groups_that_add_fewest(rows, most_groups, members, groups):
    assert equal_groups(rows, most_groups) == (members, groups)


def test_results_do_not_depend_on_the_chunks_of_the_population():
    model = new_model(lambda: tiny_causal_lm(hidden_size=32))
    adapters = random_adapters(model, members=5, scale=0.15)
    free = evaluate_population(model, adapters, IDS, MASK, **ending(model, EOS))[:, :, 5:]
    common = [token for token, _ in Counter(free[:, :, 1:8].flatten().tolist()).most_common(8)]
    whole = evaluate_population(model, adapters, IDS, MASK, **ending(model, common))
    for size in (1, 2, 3, 7):
        chunked = evaluate_population(model, adapters, IDS, MASK, population_chunk_size=size, **ending(model, common))
        assert torch.equal(chunked, whole)
    with population(model, adapters) as base:
        logits = base(IDS.repeat(5, 1), attention_mask=MASK.repeat(5, 1)).logits
    with population(model, {name: (a[3:], b[3:]) for name, (a, b) in adapters.items()}) as base:
        last_two = base(IDS.repeat(2, 1), attention_mask=MASK.repeat(2, 1)).logits
    real = MASK.bool().repeat(2, 1)
    torch.testing.assert_close(last_two[real], logits[9:][real], rtol=0, atol=1e-5)


def test_decoding_that_is_compiled_uses_the_adapters_of_each_population_and_leaves_them_out_after_it():
    model = new_model(lambda: tiny_causal_lm(hidden_size=32))
    adapters = random_adapters(model, 3)
    compiled = CompileConfig(backend="eager", mode=None)
    compiled._compile_all_devices = True  # `generate` compiles on a GPU alone, else
    settings = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    fast = {**settings, "cache_implementation": "static", "compile_config": compiled}
    plain = model.generate(IDS, attention_mask=MASK, **settings)
    assert model.generate(IDS, attention_mask=MASK, **fast).equal(plain)
    expected = evaluate_population(model, adapters, IDS, MASK, **settings)
    assert not expected[0].equal(expected[1])
    assert evaluate_population(model, adapters, IDS, MASK, **fast).equal(expected)
    reversed_adapters = {name: (a.flip(0), b.flip(0)) for name, (a, b) in adapters.items()}
    assert evaluate_population(model, reversed_adapters, IDS, MASK, **fast).equal(expected.flip(0))
    assert model.generate(IDS, attention_mask=MASK, **fast).equal(plain)


def test_a_peft_model_works_like_its_base_and_its_own_adapter_does_not_act():
    model = new_model(lambda: tiny_causal_lm(hidden_size=32))
    adapters = random_adapters(
        model, members=3, names=["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
    )
    expected = evaluate_population(model, adapters, IDS, MASK, max_new_tokens=5, do_sample=False)
    peft_model = get_peft_model(model, LoraConfig(target_modules=["v_proj", "q_proj"], init_lora_weights=False)).eval()
    requires_grad = [parameter.requires_grad for parameter in peft_model.parameters()]
    own = peft_model(IDS, attention_mask=MASK).logits
    for wrapped in (peft_model, peft_model.get_base_model()):
        tokens = evaluate_population(wrapped, adapters, IDS, MASK, max_new_tokens=5, do_sample=False)
        assert torch.equal(tokens, expected)
    assert isinstance(peft_model, PeftModel)
    assert torch.equal(peft_model(IDS, attention_mask=MASK).logits, own)
    assert [parameter.requires_grad for parameter in peft_model.parameters()] == requires_grad


def hooks_of(model):
    return [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module))
        for name, module in model.named_modules()
    ]


def test_the_model_is_as_before_after_a_population_and_after_an_error():
    model = tiny_causal_lm(hidden_size=32)  # in training mode
    model.model.layers[1].eval()
    adapters = random_adapters(model, members=2)
    before = hooks_of(model), weights_digest(model), model(IDS, attention_mask=MASK).logits
    modes = [module.training for module in model.modules()]

    def interrupt(module, args, output):
        raise KeyboardInterrupt

    evaluate_population(model, adapters, IDS, MASK, max_new_tokens=3)
    handle = model.model.layers[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate_population(model, adapters, IDS, MASK, max_new_tokens=3)
    handle.remove()
    with pytest.raises(ZeroDivisionError), population(model, adapters):
        1 / 0  # noqa: B018
    assert (hooks_of(model), weights_digest(model)) == before[:2]
    assert torch.equal(model(IDS, attention_mask=MASK).logits, before[2])
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()


def test_members_are_cast_to_the_dtype_of_a_half_precision_base():
    model = new_model(lambda: tiny_causal_lm(hidden_size=32)).to(torch.bfloat16)
    adapters = random_adapters(model, members=3)
    with population(model, adapters) as base:
        logits = base(IDS.repeat(3, 1), attention_mask=MASK.repeat(3, 1)).logits.view(3, 3, 5, -1)
    assert logits.dtype == torch.bfloat16
    own = own_results(model, adapters, 1, max_new_tokens=1)[0]
    real = MASK.bool()
    assert (logits[1][real] - own[real]).abs().max() < 0.1 * own.abs().max()  # PEFT computes its part in float32
    assert (logits[1][real] - logits[0][real]).abs().max() > 0.3 * own.abs().max()


def test_autocast_casts_members_like_the_base():
    model = new_model(lambda: tiny_causal_lm(hidden_size=32))
    adapters = random_adapters(model, members=3)
    with population(model, adapters) as base, torch.autocast("cpu", torch.bfloat16):
        logits = base(IDS.repeat(3, 1), attention_mask=MASK.repeat(3, 1)).logits.float().view(3, 3, 5, -1)
    own = own_results(model, adapters, 1, max_new_tokens=1)[0]
    real = MASK.bool()
    assert (logits[1][real] - own[real]).abs().max() < 0.05 * own.abs().max()


def test_a_base_in_nf4_gives_each_member_what_peft_gives_it(tmp_path):
    tiny_causal_lm(hidden_size=64).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32).eval()
    keep_cpu_4bit_gradients_right(model)
    adapters = random_adapters(model, members=3)
    tokens = evaluate_population(model, adapters, IDS, MASK, max_new_tokens=5, do_sample=False)
    with population(model, adapters) as base:
        logits = base(IDS.repeat(3, 1), attention_mask=MASK.repeat(3, 1)).logits.view(3, 3, 5, -1)
    for member in (0, 2):
        own_logits, own_tokens = own_results(model, adapters, member, max_new_tokens=5, do_sample=False)
        torch.testing.assert_close(logits[member][MASK.bool()], own_logits[MASK.bool()], rtol=0, atol=1e-5)
        assert torch.equal(tokens[member], padded(own_tokens, tokens.shape[2]))


# ---- Canaries ----


def centre_of(adapters):
    return {name: (a[0], b[0]) for name, (a, b) in adapters.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sound_model_passes_the_canaries(dtype):
    model = new_model(lambda: tiny_causal_lm(hidden_size=32)).to(dtype)
    found = check_population(model, centre_of(random_adapters(model, members=1)), IDS, MASK)
    assert found["zero_sigma"] < (1e-5 if dtype == torch.float32 else 0.05)
    assert found["large_sigma"] > 0.3


def test_the_canaries_find_adapters_without_effect():
    model = new_model(lambda: tiny_causal_lm(hidden_size=32))
    with pytest.raises(RuntimeError, match=r"sigma 1e-09 differs.*by only.*no effect"):
        check_population(model, centre_of(random_adapters(model, members=1)), IDS, MASK, large_sigma=1e-9)


def test_the_canaries_find_a_model_that_mixes_the_rows_of_its_batch():
    model = new_model(lambda: tiny_causal_lm(hidden_size=32))
    model.model.norm.register_forward_hook(lambda module, args, output: output.flip(0))
    with pytest.raises(RuntimeError, match="does not keep the rows of its batch apart"):
        check_population(model, centre_of(random_adapters(model, members=1)), IDS, MASK)


def test_the_canaries_name_a_module_that_never_runs():
    model = new_model(lambda: tiny_causal_lm(hidden_size=32))
    model.model.layers[0].unused = nn.Linear(32, 8)
    with pytest.raises(RuntimeError, match=r"never calls \['model.layers.0.unused'\]"):
        check_population(model, centre_of(random_adapters(model, members=1)), IDS, MASK)


# ---- Bad input ----


def test_an_adapter_for_an_unknown_module_is_an_error_that_names_near_ones():
    model = tiny_causal_lm(hidden_size=32)
    pair = (torch.zeros(2, 32, 3), torch.zeros(2, 3, 32))
    for name in ("model.layers.0.self_attn.q_prj", "layers.0.self_attn.q_proj"):
        with pytest.raises(
            ValueError, match=r"no module of the model; near names.*model\.layers\.0\.self_attn\.q_proj"
        ):
            evaluate_population(model, {name: pair}, IDS, MASK, max_new_tokens=2)


@pytest.mark.parametrize(
    ("name", "a", "b", "complaint"),
    [
        ("model.embed_tokens", (2, 32, 3), (2, 3, 32), "is a Embedding; only linear"),
        ("model.layers.0.self_attn.q_proj", (2, 31, 3), (2, 3, 32), r"A is \(2, 31, 3\).*= \(2, 32, 3\)"),
        ("model.layers.0.self_attn.q_proj", (2, 32, 3), (3, 3, 32), r"B \(3, 3, 32\).*= \(2, 3, 32\)"),
        ("model.layers.0.self_attn.q_proj", (2, 32, 3), (2, 4, 32), r"B \(2, 4, 32\).*= \(2, 3, 32\)"),
    ],
)
def test_adapters_that_do_not_fit_their_module_are_refused(name, a, b, complaint):
    model = tiny_causal_lm(hidden_size=32)
    with pytest.raises(ValueError, match=complaint), population(model, {name: (torch.zeros(a), torch.zeros(b))}):
        pass
    with pytest.raises(ValueError, match="adapters is empty"), population(model, {}):
        pass


def test_a_merged_base_is_refused():
    model = get_peft_model(tiny_causal_lm(hidden_size=32), LoraConfig(target_modules=["q_proj"]))
    adapters = random_adapters(tiny_causal_lm(hidden_size=32), members=1, names=["model.layers.0.self_attn.q_proj"])
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged into the base weights; call unmerge_adapter"):
        evaluate_population(model, adapters, IDS, MASK, max_new_tokens=2)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_beams": 2}, "num_beams is 2"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate is True"),
        ({"population_chunk_size": 0}, "population_chunk_size is 0"),
        ({"attention_mask": MASK.flip(1)}, "padded on the left"),
        ({"attention_mask": MASK[:, 1:]}, "give equal shapes"),
    ],
)
def test_a_request_that_a_population_cannot_serve_is_refused(settings, complaint):
    model = tiny_causal_lm(hidden_size=32)
    adapters = random_adapters(model, members=2)
    with pytest.raises(ValueError, match=complaint):
        evaluate_population(model, adapters, IDS, **{"attention_mask": MASK, "max_new_tokens": 2, **settings})


def test_a_module_that_sees_rows_without_their_member_is_refused():
    model = new_model(lambda: tiny_causal_lm(hidden_size=32))
    up_proj = model.model.layers[0].mlp.up_proj
    forward = model.model.layers[0].mlp.forward
    model.model.layers[0].mlp.forward = lambda x: forward(x.flatten(0, 1)).view_as(x)
    adapters = random_adapters(model, members=2, names=["model.layers.0.mlp.up_proj"])
    with pytest.raises(ValueError, match=r"up_proj is called with \(30, 32\).*leave the module out"):
        evaluate_population(model, adapters, IDS, MASK, max_new_tokens=2)
    assert not up_proj._forward_hooks
