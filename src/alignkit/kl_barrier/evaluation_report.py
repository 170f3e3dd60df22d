"""What one evaluation of a policy against its reference says: numbers, distributions, and the worst tokens."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alignkit.kl_barrier.aggregation import AGGREGATES, Aggregate

FloatArray = npt.NDArray[np.float64]
DIRECTIONS = ("reverse_kl", "forward_kl")
QUANTILES = (0.5, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class WorstToken:
    """A token at which policy and reference are far apart.

    Attributes:
        divergence_nats (`float`): k_t of the prediction of this token; NaN and inf are kept.
        token (`str`), token_id (`int`): the token that the data has there.
        before, after (`str`): up to ten tokens on either side in its own sequence, special tokens included.
        sequence (`int`): row of `BarrierReport.divergences`: sequences (rows of the data, under packing documents)
            that have a label, counted from 0.
        position (`int`): of the token in the sequence, from 0.
    """

    divergence_nats: float
    token: str
    token_id: int
    before: str
    after: str
    sequence: int
    position: int


@dataclass(frozen=True, eq=False)
class BarrierReport:
    """Result of one evaluation. Sequences without a labelled token are left out.

    Attributes:
        n_sequences (`int`), n_tokens (`int`): how many sequences and labelled tokens there are.
        nll (`float`), entropy (`float`): of the policy, mean over tokens, nats.
        token_accuracy (`float`): share of tokens that the policy finds most likely.
        divergences (`dict`): by direction (`"reverse_kl"`, `"forward_kl"`) and aggregate, D of each sequence `(S,)`.
        direction (`str`), aggregate (`str`), tau_nats (`float`): the gate that training uses, here on sequences
            whatever its scope.
        worst_tokens (`list[WorstToken]`): largest k_t in `direction` first, non-finite ones before all others.
    """

    n_sequences: int
    n_tokens: int
    nll: float
    entropy: float
    token_accuracy: float
    divergences: dict[str, dict[str, FloatArray]]
    direction: str
    aggregate: Aggregate
    tau_nats: float
    worst_tokens: list[WorstToken]

    @property
    def divergence(self) -> float:
        """Mean over sequences of D in the direction and aggregate of the gate."""
        return float(self._of_gate.mean())

    @property
    def open_share(self) -> float:
        """Share of the sequences with D > tau; NaN when any D is."""
        return float("nan") if np.isnan(self._of_gate).any() else float((self._of_gate > self.tau_nats).mean())

    @property
    def hinge(self) -> float:
        """Mean over sequences of relu(D - tau): the barrier before its weight."""
        return float(np.maximum(self._of_gate - self.tau_nats, 0.0).mean())

    @property
    def _of_gate(self) -> FloatArray:
        return self.divergences[self.direction][self.aggregate]

    def quantiles(self, direction: str, aggregate: str) -> dict[float, float]:
        """Of D over sequences: for each q of 0.5, 0.9, 0.95, 0.99 and 1 the smallest D that a share q does not exceed.

        No interpolation, so that an infinite D does not spoil the finite ones. All are NaN when any D is.
        """
        values = self.divergences[direction][aggregate]
        if np.isnan(values).any():
            return dict.fromkeys(QUANTILES, float("nan"))
        found = np.quantile(values, QUANTILES, method="inverted_cdf")
        return dict(zip(QUANTILES, found.tolist(), strict=True))

    def flat(self, prefix: str) -> dict[str, float]:
        """Metrics for a log: `<prefix>_nll`, `<prefix>_kl/gate_open`, `<prefix>_reverse_kl/<aggregate>` and so on.

        `<prefix>_kl/divergence` and `<prefix>_kl/gate_open` are of the gate; the others are means over tokens or over
        sequences.
        """
        metrics = {
            "nll": self.nll,
            "entropy": self.entropy,
            "mean_token_accuracy": self.token_accuracy,
            "kl/divergence": self.divergence,
            "kl/gate_open": self.open_share,
        }
        for direction in DIRECTIONS:
            metrics |= {f"{direction}/{how}": float(self.divergences[direction][how].mean()) for how in AGGREGATES}
        return {f"{prefix}_{name}": value for name, value in metrics.items()}

    def to_markdown(self) -> str:
        """The numbers, the distribution of D over sequences, and the worst tokens."""
        summary = [
            f"{self.n_sequences} sequences, {self.n_tokens} tokens: NLL {self.nll:.4g} nats, "
            f"token accuracy {self.token_accuracy:.2%}, entropy {self.entropy:.4g} nats.",
            f"Gate: {self.direction}, {self.aggregate}, tau {self.tau_nats:.4g} nats; "
            f"open for {self.open_share:.2%} of the sequences.",
        ]
        header = ["direction", "aggregate", "mean", *(f"{q:.0%}" for q in QUANTILES[:-1]), "max"]
        rows = [
            [direction, how, f"{self.divergences[direction][how].mean():.4g}"]
            + [f"{value:.4g}" for value in self.quantiles(direction, how).values()]
            for direction in DIRECTIONS
            for how in AGGREGATES
        ]
        parts = [*summary, "D of a sequence, in nats, over sequences:", markdown_table(header, rows, n_left=2)]
        if self.worst_tokens:
            worst = [
                [str(rank), f"{token.divergence_nats:.4g}", str(token.sequence), str(token.position)]
                + [code(text) for text in (token.before, token.token, token.after)]
                for rank, token in enumerate(self.worst_tokens, start=1)
            ]
            header = ["rank", f"{self.direction}, nats", "sequence", "position", "before", "token", "after"]
            parts += ["Tokens of the largest divergence:", markdown_table(header, worst, n_left=0)]
        return "\n\n".join(parts) + "\n"


def markdown_table(header: list[str], rows: list[list[str]], *, n_left: int) -> str:
    """A Markdown table; the first `n_left` columns stand left, the others right."""
    rule = ["---"] * n_left + ["---:"] * (len(header) - n_left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def code(text: str) -> str:
    """Text as a code span of a table's cell, with quotes and escapes, so that spaces and special tokens are seen."""
    fence = "`" * (1 + max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0))
    padding = " " if "`" in text else ""
    return f"{fence}{padding}{text!r}{padding}{fence}".replace("|", "\\|")
