"""Transductive prediction: the photographs of a test set help to classify each other.

The adapter says how likely each class is for each row. Rows that it takes for one class lie close together, so their
mean and that of the shots, weighted by these probabilities, say where the class really is in this test set. In turn,
each row is classified by the adapter and by its distance from these means: expectation maximisation of Gaussians with
one covariance (Dempster et al. 1977), started from a classifier and tied to it, as in TransCLIP (Zanella et al. 2024,
arXiv:2406.01837). The logit of row i for class c is

    log p_ic + strength·g_ic + b_c

- p_ic: the adapter's probability;
- g_ic: the Gaussian log-likelihood around the mean of class c, to which row i itself does not contribute. With it, each
  row would draw the mean of its likeliest class to itself, which in 512 dimensions decides at once;
- b_c: chosen such that the probabilities of class c sum to a number s_c over all rows.

s_c = (n_c + ½)^rho up to a factor, where n_c is that sum for the adapter alone. A rho of 0 makes all classes equally
frequent, 1 leaves sizes as they are found, and more than 1 makes up for what large classes lose to small ones. Unless
the user says that classes are balanced, rho depends on how much log n_c varies, compared with the validation rows,
whose classes are known: about as much means that the adapter's errors explain all of it. docs/log.md, "Transductive
prediction", has the experiments.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fewshot.artifacts import Adapter, Split, Support
from fewshot.rows import chunks, class_sums, log_softmax, softmax
from jclip.progress import track
from tip_adapter_utils import predict_logits

from .gaussian import TextMap, shrunk

STRENGTHS = (0.0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)  # tried on the validation rows, until they like it less
DEFAULT_STRENGTH = 0.02  # without validation rows
SCALES = np.arange(3, 13, dtype=np.float32) / 10  # of the final logits, which are too confident with Gaussians
DEFAULT_SCALE = np.float32(0.85)
ROUNDS = 3  # of expectation and maximisation; six give the same accuracy
PRIOR_ROWS = 1  # rows that a mean predicted from the class's text is worth
TEXT_RIDGE = 0.1  # strength of the ridge regression that predicts it
FIRST_SIZE_STEPS, SIZE_STEPS = 8, 3  # of fitting b_c to s_c; each round starts from the b_c of the last
MIN_ROWS = 3  # test rows per class, on average, without which no class is made larger than it is found
MAX_RHO = 1.2
DEFAULT_SIZE_ERROR = 0.07  # variance of log n_c that the adapter's errors explain, where no validation row shows it
UNEQUAL = 2.0  # from this ratio of variances on, classes held to equal sizes lost accuracy in every experiment
CONFIDENT = 0.5  # probability of a confident answer


class Sizes(NamedTuple):
    """How frequent the classes seem to be among the test rows."""

    rho: float
    ratio: float  # the variance of log n_c, divided by what the adapter's errors explain of it
    effective_classes: float  # exp of the entropy of the classes of confident answers


class Transduced(NamedTuple):
    """The outcome of transductive prediction."""

    logits: np.ndarray  # float32 (T, C)
    strength: float  # of the Gaussians
    sizes: Sizes


def transduce(adapter: Adapter, test: Split, support: Support, val: Split | None, balanced: bool = False) -> Transduced:
    """Return the logits of test rows that help to classify each other.

    Parameters
    ----------
    adapter : Adapter
    test : Split
        T rows; their labels are not looked at.
    support : Support
        The shots, which take part as labelled rows; may be empty.
    val : Split or None
        The strength of the Gaussians is chosen on the labelled ones of these rows. They take part like test rows.
    balanced : bool
        Whether the user says that classes are about equally frequent among the test rows.
    """
    known = None if val is None else val.labels >= 0
    val_rows = test.features[:0] if val is None else val.features[known]
    labels = np.zeros(0, np.int64) if val is None else val.labels[known]
    n_test, features = len(test.features), np.concatenate([test.features, val_rows])
    logp = log_softmax(predict_logits(adapter, features))
    sizes = class_sizes(np.exp(logp[:n_test]), np.exp(logp[n_test:]), labels, balanced)
    if not n_test:
        return Transduced(logp[:0], DEFAULT_STRENGTH, sizes)
    rows = _Rows(features, logp, n_test, adapter.text, support, sizes.rho)
    if not len(labels):
        return Transduced(DEFAULT_SCALE * rows.logits(DEFAULT_STRENGTH)[:n_test], DEFAULT_STRENGTH, sizes)
    best, highest = None, -np.inf
    for strength in track(STRENGTHS, "transduction", " strength", leave=False):
        logits = rows.logits(strength)
        likelihood, scale = _best_scale(logits[n_test:], labels)
        if likelihood < highest:
            break
        best, highest = Transduced(scale * logits[:n_test], strength, sizes), likelihood
    return best


def class_sizes(test: np.ndarray, val: np.ndarray, labels: np.ndarray, balanced: bool = False) -> Sizes:
    """Return how frequent the classes seem to be among test rows.

    Parameters
    ----------
    test, val : float arrays of shape (T, C) and (M, C)
        The adapter's probabilities of test and validation rows.
    labels : int array of shape (M,)
        The classes of the validation rows.
    balanced : bool
        Whether the user says that classes are about equally frequent; rho is 0 then.
    """
    n_classes, error = test.shape[1], DEFAULT_SIZE_ERROR
    if len(labels):
        error = np.var((_log_sizes(val) - np.log(np.bincount(labels, minlength=n_classes) + 0.5))[np.unique(labels)])
    ratio = float(np.var(_log_sizes(test)) / max(error, 1e-6))
    if balanced:
        rho = 0.0
    else:
        # The variance of few numbers is itself uncertain, and equal sizes that are not true cost more than they gain.
        rho = MAX_RHO * (1 - max(1.0, (1 + 10 / n_classes) * ratio) ** -3)
        if len(test) < MIN_ROWS * n_classes:
            rho = max(1.0, rho)
    confident = test.max(axis=1, initial=0) > CONFIDENT
    share = np.bincount(test.argmax(axis=1)[confident]) / max(1, confident.sum())
    share = share[share > 0]
    return Sizes(rho, ratio, float(np.exp(-share @ np.log(share))))


def _log_sizes(probabilities: np.ndarray) -> np.ndarray:
    """Return log(n_c + ½), (C,), for probabilities (n, C)."""
    return np.log(probabilities.sum(axis=0, dtype=np.float64) + 0.5)


def _best_scale(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.float32]:
    """Return the highest mean log-likelihood of labels (M,) under scaled logits (M, C), and the scale of SCALES."""
    rows = np.arange(len(labels))
    return max((float(log_softmax(scale * logits)[rows, labels].mean()), scale) for scale in SCALES)


class _Gaussians(NamedTuple):
    """A Gaussian for each class, with one covariance."""

    totals: np.ndarray  # float32 (C,), number of rows in each mean, counted by their probabilities
    means: np.ndarray  # float32 (C, D)
    precision: np.ndarray  # float32 (D, D), the inverse of the covariance

    def log_likelihood(self, features: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Return the log-likelihood (n, C) of rows (n, D) that are themselves a part, share (n, C), of the means.

        It is that of the mean of the other rows, m of them: f minus their mean is (f − mean)·total/m, and the
        covariance of a new row around the mean of m rows is (1 + 1/m) times that of the rows. What all classes have in
        common, and a term that would prefer large classes, is left out.
        """
        projected = features @ self.precision
        distance = (projected * features).sum(axis=1, keepdims=True) - 2 * (projected @ self.means.T)
        distance += (self.means @ self.precision * self.means).sum(axis=1)
        others = self.totals - share
        return -0.5 * distance * self.totals**2 / (others * (others + 1))


class _Rows:
    """The rows of a transduction, test rows first, with all that does not depend on the strength of the Gaussians.

    features : float32 (n, D); logp : float32 (n, C), the adapter's log-probabilities; text : float32 (C, D)
    """

    def __init__(
        self, features: np.ndarray, logp: np.ndarray, n_test: int, text: np.ndarray, support: Support, rho: float
    ):
        n_classes, centre = len(text), features.mean(axis=0)
        self.features = features - centre  # so that distances are no small differences of large numbers
        self.logp, self.n_test = logp, n_test
        shots = support.features[:, 0] - centre
        self.n_shots = np.bincount(support.labels, minlength=n_classes).astype(np.float32)
        self.shot_sums = class_sums(shots, support.labels, n_classes)
        self.scatter = self.features.T @ self.features + shots.T @ shots
        sizes = np.exp(rho * _log_sizes(np.exp(logp[:n_test])))
        self.sizes = None if rho == 1 else sizes * n_test / sizes.sum()
        self.bias = self._size_bias(logp, np.zeros(n_classes, np.float32), FIRST_SIZE_STEPS)
        self.start = logp.copy()
        self.start[:n_test] += self.bias
        totals, sums = self._sums(self.start)
        found = sums / np.maximum(totals, 1e-6)[:, None]
        self.prior = TextMap(text, TEXT_RIDGE).predict(found, text).astype(np.float32)

    def logits(self, strength: float) -> np.ndarray:
        """Return the logits (n, C)."""
        logits, bias = self.start.copy(), self.bias
        for _ in range(ROUNDS if strength else 0):
            gaussians = self._gaussians(logits)
            for part in chunks(*logits.shape):
                likelihood = gaussians.log_likelihood(self.features[part], softmax(logits[part]))
                logits[part] = self.logp[part] + np.float32(strength) * likelihood
            bias = self._size_bias(logits, bias, SIZE_STEPS)
            logits[: self.n_test] += bias
        return logits

    def _sums(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of rows of each class, (C,), and their sum, (C, D), for logits (n, C); shots count."""
        totals, sums = self.n_shots.copy(), self.shot_sums.copy()
        for part in chunks(*logits.shape):
            probabilities = softmax(logits[part])
            totals += probabilities.sum(axis=0)
            sums += probabilities.T @ self.features[part]
        return totals, sums

    def _gaussians(self, logits: np.ndarray) -> _Gaussians:
        """Return the Gaussians of rows with these logits (n, C)."""
        totals, sums = self._sums(logits)
        totals, sums = totals + np.float32(PRIOR_ROWS), sums + PRIOR_ROWS * self.prior
        means = sums / totals[:, None]
        scatter = self.scatter + PRIOR_ROWS * self.prior.T @ self.prior - sums.T @ means
        covariance = shrunk(scatter / totals.sum(), int(totals.sum()))
        return _Gaussians(totals, means, np.linalg.inv(covariance.astype(np.float64)).astype(np.float32))

    def _size_bias(self, logits: np.ndarray, bias: np.ndarray, steps: int) -> np.ndarray:
        """Return b_c, float32 (C,), for logits (n, C) without it, after some steps from `bias`.

        Each step divides by what a class has too much (Sinkhorn & Knopp 1967, for one of the margins).
        """
        if self.sizes is None:
            return bias
        test = logits[: self.n_test]
        for _ in range(steps):
            found = sum(softmax(test[part] + bias).sum(axis=0) for part in chunks(*test.shape))
            bias = bias - np.log((found + 1e-9) / self.sizes).astype(np.float32)
        return bias
