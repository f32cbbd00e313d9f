"""The losses: what training makes small, as the mean over positions. Each answers for itself.

A loss is a small object. It is asked for

    formula(…)            the literal line on scores, in the paper's closed form: what tests and
                          lessons read, and what an own loss needs to say
    loss(hidden, table, …)  the same from hidden states; by the kernels where it has such a form, else
                          by its formula on gathered scores
    link                  p̂ of the scores: σ, the softmax, or None where scores say nothing alone
    fixed_point(sampler)  where σ(s) ends (Theorem 5.1), or None
    prior(scores, sampler)  the P(i) that the scores of a whole catalogue tell, or None

No clamp, no epsilon, no float64: log σ(s)^β is β·logsigmoid(s), so that every gradient lives from
s = −80 to 80, and is right to rounding for scores of a million.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gsas_lab import theory
from gsas_lab.errors import InputError
from gsas_lab.interactions import PAD
from gsas_lab.kernels import fused
from gsas_lab.parts import Registry
from gsas_lab.samplers import PositiveExcluded, Sampler
from gsas_lab.theory import FixedPoint


@dataclass(frozen=True)
class Link:
    """From scores (..., n) to p̂, the same shape."""

    words: str
    of: Callable[[Tensor], Tensor]

    def __call__(self, scores: Tensor) -> Tensor:
        return self.of(scores)


SIGMOID = Link("σ(s)", torch.sigmoid)  # item by item
SOFTMAX = Link("softmax", lambda scores: scores.softmax(-1))  # over the catalogue: it sums to 1


@dataclass(frozen=True)
class Loss(ABC):
    """A loss of scores. An own one inherits from it and has a `formula`."""

    words: ClassVar[str] = ""  # its name in tables; none: the class's
    whole: ClassVar[bool] = False  # does it see the whole catalogue, and draw no negatives?
    samples: ClassVar[bool] = True  # do k and the sampler change it?
    has_t: ClassVar[bool] = False  # does the setting t?
    has_start: ClassVar[bool] = True  # can Theorem 5.1 start the output bias?
    takes_logq: ClassVar[bool] = True  # can log(k q) be taken from its scores?
    takes_weights: ClassVar[bool] = False  # has it a form in which a negative stands for several?
    corrected: ClassVar["Loss | None"] = None  # the loss that learns the same as this one with logQ
    only_uniform: ClassVar[bool] = False  # is it defined for uniform draws alone?
    link: ClassVar[Link | None] = SIGMOID
    capturable: ClassVar[bool] = False  # on CUDA: may its steps be replayed? see training.Step

    @classmethod
    def of(cls, t: float, sampler: Sampler) -> Self:
        """The loss of a run with this t, and with these negatives."""
        return cls()

    @classmethod
    def called(cls, model: str, k: int, t: float) -> str:
        """A system's name in tables: the model's, with what tells its loss."""
        return f"{model}, {cls.words}, k = {k}"

    @abstractmethod
    def formula(self, positive_scores: Tensor, negative_scores: Tensor, /) -> Tensor:
        """positive_scores (...,), negative_scores (..., k) -> scalar, the mean over positions.

        Of a `whole` loss: scores (..., n_items + 1), column 0 being padding, and targets (...,).
        """

    def __call__(
        self,
        hidden: Tensor,
        table: Tensor,
        positives: Tensor,
        bias: Tensor | None = None,
        negatives: Tensor | None = None,
        sets: Tensor | None = None,
    ) -> Tensor:
        """`formula` of hidden (P, d), table (n_items + 1, d), positives (P,) -> scalar.

        Positions whose positive is 0 take no part. negatives (P, k), or (S, k) of which sets (P,)
        tells each position's own row. bias: a scalar added to every score, or None.
        This form gathers the scores' inputs: 4·P·(k + 1)·d bytes, and as much for the gradient.
        """
        real = positives != PAD
        assert negatives is not None
        drawn = (negatives if sets is None else negatives[sets])[real]
        items = torch.cat([positives[real, None], drawn], dim=1)  # (P, k + 1)
        scores = (hidden[real, None] * F.embedding(items, table)).sum(-1)
        scores = scores if bias is None else scores + bias
        if not len(scores):  # a batch of padding alone: nothing, with a gradient of 0
            return (hidden.sum() + table.sum()) * 0.0
        try:
            return self.formula(scores[:, 0], scores[:, 1:])
        except (
            RuntimeError,
            ValueError,
            LookupError,
            TypeError,
        ) as error:  # of a part of one's own
            if isinstance(error, InputError):
                raise
            told = f"fails with {scores.shape[1] - 1} negatives ({type(error).__name__}: {error})"
            raise InputError(
                f"The loss {self.words} {told}: mend it, or choose another k."
            ) from error

    @property
    def leaves_pairs(self) -> bool:
        """May its table's gradient be left as pairs, see `fused.in_pairs`? Where it is called with the
        table as it is, by `fused.gbce` or `fused.sampled_softmax`.
        """
        return False

    def at(self, rows: Tensor) -> "Loss":
        """The same loss, called with these rows (R,) of the table alone: see `rows.only`."""
        return self

    @classmethod
    def check(cls) -> None:
        """Try it on small examples: its formula is one finite number, and where it has a form of its
        own from hidden states, value and gradients are those of autograd through the formula.

        InputError that says which of them fails.
        """
        places, k, n_items, d = 7, 4, 20, 8
        loss = cls.of(0.75, PositiveExcluded(k, n_items))
        draw = torch.Generator().manual_seed(0)
        hidden = torch.randn(places, d, generator=draw)
        table = torch.randn(n_items + 1, d, generator=draw)
        positives, *others = torch.randint(1, n_items + 1, (k + 1, places), generator=draw)
        bias = torch.tensor(-0.5)
        leaves = [hidden.requires_grad_(), table.requires_grad_(), bias.requires_grad_()]

        def by_formula() -> Tensor:
            scores = hidden @ table.T + bias
            if cls.whole:
                return loss.formula(scores, positives)
            items = torch.stack([positives, *others], 1)
            found = scores.gather(1, items)
            return loss.formula(found[:, 0], found[:, 1:])

        value = by_formula()
        if not isinstance(value, Tensor) or value.shape != () or not torch.isfinite(value):
            raise InputError(f"gives {value!r} as its formula: one finite number is asked for.")
        own = loss(hidden, table, positives, bias, None if cls.whole else torch.stack(others, 1))
        pairs = [("value", own, value)]
        slopes = [torch.autograd.grad(x, leaves, allow_unused=True) for x in (own, value)]
        if all(slope is None for slope in slopes[1]):
            raise InputError("has a formula without gradients: keep to operations of torch.")
        names = ("gradient of hidden", "gradient of table", "gradient of bias")
        pairs += [
            (name, *(torch.zeros(1) if x is None else x for x in each))
            for name, *each in zip(names, *slopes, strict=True)
        ]
        for what, one, other in pairs:
            if not torch.allclose(one, other, rtol=1e-3, atol=1e-5):
                furthest = float((one - other).detach().abs().max())
                raise InputError(
                    f"has a {what} that differs from its formula's by up to {furthest:.2g}."
                )

    def weighted(
        self, positive_scores: Tensor, negative_scores: Tensor, log_weight: Tensor
    ) -> Tensor:
        """`formula` where each negative stands for e^log_weight items, (..., k), and the positive for
        itself: what `CorrectedLogQ` makes small. −10³⁰ leaves a negative out.
        """
        raise NotImplementedError

    def fixed_point(self, sampler: Sampler) -> FixedPoint | None:
        """Where σ(s) of an item of true probability P ends; None if the loss has no such point.

        Found from `formula` alone by its slopes, where the positive's does not depend on the
        negatives' scores nor the other way round: see `theory.FixedPoint`.
        """
        if sampler.alpha is None or self.slopes is None:
            return None
        return FixedPoint(sampler.alpha, self.slopes, sampler.collisions)

    def prior(self, scores: np.ndarray, sampler: Sampler) -> np.ndarray | None:
        """P(i) that the scores (..., n_items) tell when training has converged; None if they do not.

        With collisions it may exceed 1 where no P could have led to the score; cut there.
        """
        point = self.fixed_point(sampler)
        return None if point is None else np.minimum(point.prior(scores), 1.0)

    def start(self, sampler: Sampler) -> float | None:
        """The score at which an average item, P = 1/n_items, rests; None where none is known."""
        point = self.fixed_point(sampler)
        if point is None:
            return None
        average = replace(point, alpha=float(np.mean(sampler.alpha)), collisions=False)
        return float(average.logit(1 / sampler.n_items))

    @cached_property
    def slopes(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """s -> log(−∂L/∂s⁺ ÷ ∂L/∂s⁻), any shape, in float64, by autograd; None if not separable."""
        probe = torch.tensor([-6.0, -1.0, 0.5, 3.0, 9.0], dtype=torch.float64)
        pulls, pushes = [], []
        for other in (-2.0, 0.0, 4.0):
            try:
                pull, push = self._pull_and_push(probe, torch.full_like(probe, other))
            except (RuntimeError, ValueError, LookupError):  # it may need several negatives
                return None
            pulls.append(pull)
            pushes.append(push)
        for slopes in (pulls, pushes):
            for slope in slopes[1:]:
                if not torch.allclose(slope, slopes[0], rtol=1e-6, atol=1e-12):
                    return None
        if not ((pulls[0] < 0) & (pushes[0] > 0)).all():
            return None

        def log_ratio(scores: np.ndarray) -> np.ndarray:
            s = torch.as_tensor(np.asarray(scores, float))
            pull, push = self._pull_and_push(s.flatten(), torch.zeros_like(s.flatten()))
            return (torch.log(-pull) - torch.log(push)).view(s.shape).numpy()

        return log_ratio

    def _pull_and_push(self, scores: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """∂L/∂s⁺ at s⁺ = scores (n,), s⁻ = other, and ∂L/∂s⁻ at s⁻ = scores, s⁺ = other; one negative."""
        found = []
        for place in (0, 1):
            with torch.inference_mode(False), torch.enable_grad():  # asked while ranking, too
                s = scores.clone().requires_grad_()
                given = (s, other[:, None]) if place == 0 else (other, s[:, None])
                total = self.formula(*given) * len(s)
                (slope,) = torch.autograd.grad(total, s, materialize_grads=True)  # 0 where unused
            found.append(slope)
        return found[0], found[1]


@dataclass(frozen=True, eq=False)
class LogQ(Loss):
    """A loss that sees s − log α for every score s, the positive's too: the logQ correction.

    α = k·q of each item is the sampler's. At evaluation nothing is taken away.
    """

    loss: Loss
    alpha: Any  # one, or (n_items,)
    n_items: int

    @cached_property
    def _learns(self) -> Loss:
        return self.loss.corrected or self.loss

    @property
    def link(self) -> Link | None:  # type: ignore[override]
        return self._learns.link

    @property
    def capturable(self) -> bool:  # type: ignore[override]
        return self.loss.capturable

    @cached_property
    def _offsets(self) -> dict[torch.device, Tensor]:
        offsets = torch.zeros(self.n_items + 1)
        offsets[1:] = -torch.as_tensor(np.log(self.alpha))
        return {offsets.device: offsets}

    def at(self, rows: Tensor) -> Loss:
        there = replace(self)
        some = {device: every[rows.to(device)] for device, every in self._offsets.items()}
        there.__dict__["_offsets"] = some  # as cached_property keeps it
        return there

    def formula(self, positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
        """Of scores from which log α is taken already."""
        return self.loss.formula(positive_scores, negative_scores)

    def __call__(self, hidden, table, positives, bias=None, negatives=None, sets=None) -> Tensor:  # type: ignore[no-untyped-def]
        kept = self._offsets
        if hidden.device not in kept:  # moved once: a captured step can copy nothing from the host
            kept[hidden.device] = kept[torch.device("cpu")].to(hidden.device)
        hidden, table = fused.offset(hidden, table, kept[hidden.device])
        return self.loss(hidden, table, positives, bias, negatives, sets)

    def fixed_point(self, sampler: Sampler) -> FixedPoint | None:
        """The loss's own with α = 1, which is what is left of the rates."""
        point = self._learns.fixed_point(sampler)
        return None if point is None else replace(point, alpha=1.0)

    def start(self, sampler: Sampler) -> float | None:
        start = self.loss.start(sampler)
        return None if start is None else start + math.log(float(np.mean(sampler.alpha)))

    def prior(self, scores: np.ndarray, sampler: Sampler) -> np.ndarray | None:
        if self.loss.corrected:
            return self._learns.prior(scores, sampler)
        return super().prior(scores, sampler)


@dataclass(frozen=True, eq=False)
class CorrectedLogQ(Loss):
    """LogQ as "Correcting the LogQ Correction" (Khrylchenko et al., RecSys 2025) has it.

    The positive is not drawn, so nothing is taken from its score. A negative stands for 1/α items,
    α = k·q being its sampler's rate, one that is the positive for none: `Loss.weighted`. Sums over
    them are then right on average for the sum over all other items.
    """

    loss: Loss
    alpha: Any  # one, or (n_items,)
    n_items: int
    collisions: bool

    capturable = (
        False  # whatever it weighs: `fused.weighted` is stock operators, which ask the host
    )

    @property
    def link(self) -> Link | None:  # type: ignore[override]
        return (self.loss.corrected or self.loss).link

    @cached_property
    def _log_alpha(self) -> dict[torch.device, Tensor]:
        found = torch.zeros(self.n_items + 1)
        found[1:] = torch.as_tensor(np.log(self.alpha))
        return {found.device: found}

    def formula(self, positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
        """Of negatives that stand for one item each."""
        return self.loss.weighted(positive_scores, negative_scores, torch.zeros(()))

    def log_weight(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """positives (P,), negatives (P, k) -> log of how many items each negative stands for (P, k)."""
        kept = self._log_alpha
        if negatives.device not in kept:  # moved once, see `LogQ`
            kept[negatives.device] = kept[torch.device("cpu")].to(negatives.device)
        found = -kept[negatives.device][negatives]
        if self.collisions:  # −∞ would have no gradient where none is left
            found = found.masked_fill(negatives == positives[:, None], -1e30)
        return found

    def __call__(self, hidden, table, positives, bias=None, negatives=None, sets=None) -> Tensor:  # type: ignore[no-untyped-def]
        drawn = negatives if sets is None else negatives[sets]
        weights = self.log_weight(positives, drawn)
        return fused.weighted(self.loss, hidden, table, positives, drawn, weights, bias)

    def fixed_point(self, sampler: Sampler) -> FixedPoint | None:
        """The loss's own with α = 1, and no collisions; of the softmax's, P, as k grows."""
        point = (self.loss.corrected or self.loss).fixed_point(sampler)
        return None if point is None else replace(point, alpha=1.0, collisions=False)

    def start(self, sampler: Sampler) -> float | None:
        point = self.fixed_point(sampler) if self.loss.has_start else None
        return None if point is None else float(point.logit(1 / sampler.n_items))

    def prior(self, scores: np.ndarray, sampler: Sampler) -> np.ndarray | None:
        if self.loss.corrected:
            return self.loss.corrected.prior(scores, sampler)
        return super().prior(scores, sampler)


LOSSES = Registry("loss", Loss)


@dataclass(frozen=True)
class GBCE(Loss):
    """gSASRec's loss, Eq. (8): −1/(k+1) · (log σ^β(s⁺) + Σ log(1 − σ(s⁻)))."""

    beta: float  # β in (0, 1], Eq. (27)

    words = "gBCE"
    has_t = True
    takes_weights = True

    @classmethod
    def of(cls, t: float, sampler: Sampler) -> Self:
        """β = 1 − t(1 − α) with the paper's α = k / (n_items − 1), whatever draws the negatives."""
        return cls(float(theory.beta_from_t(t, theory.alpha(sampler.k, sampler.n_items))))

    @classmethod
    def called(cls, model: str, k: int, t: float) -> str:
        if model != "SASRec":
            return f"{super().called(model, k, t)}, t = {t:g}"
        told = "gSASRec" if k == 256 else f"gSASRec, k = {k}"
        return told if (k, t) == (256, 0.75) else f"{told}, t = {t:g}"

    def formula(self, positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
        positive = self.beta * F.softplus(-positive_scores)
        negative = F.softplus(negative_scores).sum(-1)
        return ((positive + negative) / (negative_scores.shape[-1] + 1)).mean()

    def weighted(
        self, positive_scores: Tensor, negative_scores: Tensor, log_weight: Tensor
    ) -> Tensor:
        """−1/(k+1) · (log σ^β(s⁺) + Σ w log(1 − σ(s⁻)))."""
        positive = self.beta * F.softplus(-positive_scores)
        negative = (log_weight.exp() * F.softplus(negative_scores)).sum(-1)
        return ((positive + negative) / (negative_scores.shape[-1] + 1)).mean()

    def __call__(self, hidden, table, positives, bias=None, negatives=None, sets=None) -> Tensor:  # type: ignore[no-untyped-def]
        return fused.gbce(hidden, table, positives, negatives, self.beta, bias, sets=sets)

    @property
    def leaves_pairs(self) -> bool:
        return type(self).__call__ is GBCE.__call__  # not of an own loss that is called otherwise

    def fixed_point(self, sampler: Sampler) -> FixedPoint | None:
        """Theorem 5.1, Eq. (10), for the sampler's own rates."""
        return (
            None
            if sampler.alpha is None
            else FixedPoint(sampler.alpha, self.beta, sampler.collisions)
        )


@dataclass(frozen=True)
class BCE(GBCE):
    """SASRec's loss, Eq. (7): −1/(k+1) · (log σ(s⁺) + Σ log(1 − σ(s⁻))), which is gBCE with β = 1."""

    beta: float = 1.0

    words = "BCE"
    has_t = False

    @classmethod
    def of(cls, t: float, sampler: Sampler) -> Self:
        return cls()

    @classmethod
    def called(cls, model: str, k: int, t: float) -> str:
        return model if (model, k) == ("SASRec", 1) else f"{model}, {cls.words}, k = {k}"


@dataclass(frozen=True)
class ExpectedGBCE(GBCE):
    """The mean of Eq. (8) over all draws of its k negatives: Eqs. (12–16), no sampling noise left.

    1/(k+1) · (β·softplus(−s⁺) + α · Σ softplus(sᵢ)), over all items but the positive with
    α = k / (n_items − 1), or with `collisions` over all items with α = k / n_items.
    """

    k: int = 1
    collisions: bool = False

    words = "expected gBCE"
    whole = True
    takes_logq = False
    only_uniform = True

    @classmethod
    def of(cls, t: float, sampler: Sampler) -> Self:
        return cls(GBCE.of(t, sampler).beta, sampler.k, sampler.collisions)

    @classmethod
    def called(cls, model: str, k: int, t: float) -> str:
        told = GBCE.called(model, k, t)
        told += f", t = {t:g}" if told == "gSASRec" else ""
        return f"{told}, expected loss"

    def formula(self, scores: Tensor, targets: Tensor) -> Tensor:
        """scores (..., n_items + 1), column 0 being padding; targets (...,) items -> scalar."""
        positive = scores.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        every = F.softplus(scores[..., 1:])
        n_items = every.shape[-1]
        if self.collisions:
            negative = self.k / n_items * every.sum(-1)
        else:  # left out, not subtracted: a large score would take the small ones' digits along
            others = every.scatter(-1, targets.unsqueeze(-1) - 1, 0.0)
            negative = self.k / (n_items - 1) * others.sum(-1)
        return ((self.beta * F.softplus(-positive) + negative) / (self.k + 1)).mean()

    def __call__(self, hidden, table, positives, bias=None, negatives=None, sets=None) -> Tensor:  # type: ignore[no-untyped-def]
        return fused.expected_gbce(
            hidden, table, positives, self.k, self.beta, bias, self.collisions
        )


@dataclass(frozen=True)
class Softmax(Loss):
    """Eq. (4): −log softmax(s)_target over the whole catalogue. It learns P itself."""

    words = "softmax"
    whole = True
    samples = False
    has_start = False
    takes_logq = False
    link = SOFTMAX

    @classmethod
    def called(cls, model: str, k: int, t: float) -> str:
        return model if model == "BERT4Rec" else f"{model}, softmax"

    def formula(self, scores: Tensor, targets: Tensor) -> Tensor:
        """scores (..., n_items + 1), column 0 being padding; targets (...,) items -> scalar."""
        return F.cross_entropy(scores[..., 1:].flatten(0, -2), targets.flatten() - 1)

    def __call__(self, hidden, table, positives, bias=None, negatives=None, sets=None) -> Tensor:  # type: ignore[no-untyped-def]
        return fused.softmax(hidden, table, positives)

    def fixed_point(self, sampler: Sampler) -> FixedPoint:
        return FixedPoint(1.0, 1.0, False)  # p̂ = P

    def start(self, sampler: Sampler) -> None:
        return None

    def prior(self, scores: np.ndarray, sampler: Sampler) -> np.ndarray:
        return SOFTMAX(torch.from_numpy(np.asarray(scores, float))).numpy()


@dataclass(frozen=True)
class SampledSoftmax(Loss):
    """Eqs. (5, 6): −log( e^{s⁺} / (e^{s⁺} + Σ e^{s⁻}) ) over the positive and its k negatives.

    It learns log(P/q) up to a constant, so that σ(s) has no fixed point. Shown by σ all the same, as
    in the paper's Figure 1.
    """

    words = "sampled softmax"
    has_start = False
    takes_weights = True
    corrected = Softmax()

    @classmethod
    def called(cls, model: str, k: int, t: float) -> str:
        return (
            f"{model}, {cls.words}" if (model, k) == ("SASRec", 16) else super().called(model, k, t)
        )

    def formula(self, positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
        together = torch.cat([positive_scores.unsqueeze(-1), negative_scores], dim=-1)
        # Not logsumexp − s⁺: near 10⁶ that sum is right to 0.06 only, and so are its gradients.
        return -together.log_softmax(-1)[..., 0].mean()

    def weighted(
        self, positive_scores: Tensor, negative_scores: Tensor, log_weight: Tensor
    ) -> Tensor:
        """−(1 − P⁺)·log( e^{s⁺} / Σ w e^{s⁻} ) with P⁺ = e^{s⁺} / (e^{s⁺} + Σ w e^{s⁻}), which gets no
        gradient: that of the full softmax where Σ w e^{s⁻} is the sum over all other items.
        """
        lead = torch.logsumexp(negative_scores - positive_scores.unsqueeze(-1) + log_weight, -1)
        return (torch.sigmoid(lead).detach() * lead).mean()

    def __call__(self, hidden, table, positives, bias=None, negatives=None, sets=None) -> Tensor:  # type: ignore[no-untyped-def]
        return fused.sampled_softmax(hidden, table, positives, negatives, bias, sets=sets)

    @property
    def leaves_pairs(self) -> bool:
        return type(self).__call__ is SampledSoftmax.__call__

    def fixed_point(self, sampler: Sampler) -> None:
        return None

    def prior(self, scores: np.ndarray, sampler: Sampler) -> np.ndarray | None:
        if sampler.alpha is None:
            return None
        return Softmax().prior(np.asarray(scores, float) + np.log(sampler.alpha), sampler)


@dataclass(frozen=True)
class BPR(Loss):
    """−log σ(s⁺ − s⁻), the mean over negatives: Bayesian personalised ranking (Rendle et al., 2009).

    It learns differences of scores: there is no p̂.
    """

    words = "BPR"
    has_start = False
    takes_logq = False
    link = None

    @classmethod
    def called(cls, model: str, k: int, t: float) -> str:
        return "MF-BPR" if model == "MF" else super().called(model, k, t)

    def formula(self, positive_scores: Tensor, negative_scores: Tensor) -> Tensor:
        return F.softplus(negative_scores - positive_scores.unsqueeze(-1)).mean()

    def __call__(self, hidden, table, positives, bias=None, negatives=None, sets=None) -> Tensor:  # type: ignore[no-untyped-def]
        return fused.bpr(hidden, table, positives, negatives, bias, sets)

    def fixed_point(self, sampler: Sampler) -> None:
        return None


for _name, _loss in {
    "bce": BCE,
    "gbce": GBCE,
    "expected_gbce": ExpectedGBCE,
    "softmax": Softmax,
    "sampled_softmax": SampledSoftmax,
    "bpr": BPR,
}.items():
    LOSSES.add(_name, _loss)

UNTRAINED = Softmax()  # of a model that is not trained: its p̂ is a share
