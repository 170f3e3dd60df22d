"""Scores and gradients of a sharded model (FSDP2, gloo), compared with the whole one. Run by torchrun on two ranks."""

import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from alignkit.reward_model import Comparisons
from alignkit.reward_model.losses import bradley_terry_loss
from alignkit.reward_model.modeling import add_reward_forward
from alignkit.tasks.toy import tiny_sequence_classifier


def gradients(model: torch.nn.Module, encode_batch_size: int | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.randint(0, 250, (6, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 12:] = 0
    first, second = torch.arange(0, 6, 2), torch.arange(1, 6, 2)
    comparisons = Comparisons(first, second, torch.tensor([0, 1, 0]))
    scores = model(input_ids=ids, attention_mask=mask, use_cache=False, encode_batch_size=encode_batch_size).logits
    bradley_terry_loss(scores, comparisons).loss.backward()
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        found[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return scores.detach(), found


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for encode_batch_size in (None, 2):
        whole, sharded = (tiny_sequence_classifier(["a", "b"], seed=1) for _ in range(2))
        for model in (whole, sharded):
            add_reward_forward(model)
        mesh = torch.distributed.init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in sharded.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        expected_scores, expected = gradients(whole, encode_batch_size)
        scores, found = gradients(sharded, encode_batch_size)
        torch.testing.assert_close(scores, expected_scores, rtol=0, atol=1e-6)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)
    dist.destroy_process_group()
    sys.stdout.write("equal\n")


if __name__ == "__main__":
    main()
