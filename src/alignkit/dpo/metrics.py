"""What is measured of pairs without β: log-ratios, which of a pair they prefer, and the divergence."""

import torch
from torch import Tensor

from alignkit.metrics import MetricSums


def logratio_sums(chosen: Tensor, rejected: Tensor) -> Tensor:
    r"""Sums over pairs `(4,)`: of r_c, r_r, r_c − r_r, and of 1[r_c > r_r] + ½·1[r_c = r_r].

    r = ln π(completion)/ref(completion) in nats. A tie is half a success, so that an untrained policy, whose
    log-ratios are all 0, has accuracy 0.5; in TRL's `rewards/accuracies` a tie is a failure and the start is 0.

    Args:
        chosen, rejected (`(B,)`): log-ratios r_c and r_r.
    """
    margin = chosen.double() - rejected.double()
    right = (margin > 0).double() + 0.5 * (margin == 0).double()
    return torch.stack([chosen.double().sum(), rejected.double().sum(), margin.sum(), right.sum()])


class PairMetrics:
    """Sums and counts of pairs since the last log, over ranks and micro-batches."""

    NAMES = ("logratio/chosen", "logratio/rejected", "logratio/margin", "logratio/accuracy")

    def __init__(self) -> None:
        self._sums = MetricSums()

    @torch.no_grad()
    def add_pairs(self, chosen: Tensor, rejected: Tensor, n_real: int) -> None:
        """Add the log-ratios `(B,)` of a batch, whose first `n_real` pairs count."""
        sums = logratio_sums(chosen[:n_real], rejected[:n_real])
        # Not a tensor of a list here and below, whose copy to the device would be waited for.
        self._sums.add_mean("logratio", sums, sums.new_full((1,), n_real))

    @torch.no_grad()
    def add_beta(self, beta: Tensor | float, like: Tensor) -> None:
        """Add the β of the pairs of a micro-batch whose log-ratios are `like` `(B,)`."""
        values = like.new_zeros(len(like)) + beta
        self._sums.add_mean("beta", values.sum()[None], values.new_full((1,), len(like)))

    @torch.no_grad()
    def add_divergence(self, reverse_kl: Tensor) -> None:
        """Add the divergences `(N,)` of a batch's completion tokens."""
        values = reverse_kl.double()
        self._sums.add_mean("kl/reverse_on_data", values.sum()[None], values.new_full((1,), len(values)))

    @torch.no_grad()
    def add_cut(self, n_cut: Tensor, n_real: int) -> None:
        """Add how many tokens of the prompt and of the completions of each pair were cut, `(B, 2)`."""
        was_cut = (n_cut[:n_real] > 0).double().sum(0)
        self._sums.add_mean("truncated", was_cut, was_cut.new_full((1,), n_real))

    def pop(self, accelerator: object) -> dict[str, float]:
        """The metrics since the last call. Collective."""
        metrics = self._sums.pop(accelerator)
        named = dict(zip(self.NAMES, metrics.pop("logratio", []), strict=False))
        named |= dict(zip(("truncated/prompts", "truncated/completions"), metrics.pop("truncated", []), strict=False))
        return named | {name: value for name, [value] in metrics.items()}
