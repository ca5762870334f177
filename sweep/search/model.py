"""A Gaussian process over the points of a grid: configurations by their settings, each with a curve over the load.

Everything is in logarithms. The noise of a launch is shared by all trials of a launch.
"""

from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported at first use: a run without a question needs none
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COMMON = 0.3  # standard deviation of what all configurations have in common
CURVE, CURVE_LENGTH = 0.05, 1.0  # of a configuration's own curve over the load, and its length in ln(load)
LOAD_LENGTH = 3.0  # within which settings have the same effect, in ln(load)
LEVEL_LENGTH = 1.2  # of an ordered setting, in levels
HALF_INTERACTING = 0.05  # a setting with this effect takes part in half of an interaction
TRIAL_NOISE = 0.012  # between trials of one launch
EFFECT, INTERACTION, OWN, LAUNCH_NOISE = 0.08, 0.015, 0.02, 0.04  # the usual size of what is fitted
SPREAD_OF_PRIOR = (1.0, 0.7, 0.7, 0.7)  # of their logarithms
MOST_SPREADS = 4  # above the usual size, at most
FIT_STEPS = 12


class Space(NamedTuple):
    """The points of a grid."""

    levels: Ints  # (configurations, settings): the level of each setting, from 0
    ordered: tuple[bool, ...]  # whether a setting's levels are numbers in order
    configuration: Ints  # of each point
    load: Floats  # of each point, above 0
    gpus: Floats  # of each configuration, 1 or more

    @property
    def size(self) -> int:
        return len(self.configuration)


def level_kernel(count: int, ordered: bool) -> Floats:
    """Return how alike the levels of a setting are, centred, with a mean diagonal of 1."""
    steps = np.arange(count)
    alike = np.exp(-((steps[:, None] - steps) ** 2) / (2 * LEVEL_LENGTH**2)) if ordered else np.eye(count)
    centred: Floats = alike - alike.mean(0) - alike.mean(1)[:, None] + alike.mean()
    return np.asarray(centred / np.diag(centred).mean())


class Observations(NamedTuple):
    """Values at points, each with the launch that gave it."""

    point: Ints
    launch: Ints
    value: Floats


class Surface:
    """The prior over one quantity at all points of a space, with parameters that are fitted to values."""

    def __init__(self, space: Space) -> None:
        self.space = space
        counts = space.levels.max(0, initial=0) + 1
        varied = [index for index, count in enumerate(counts) if count > 1]
        kernels = [level_kernel(int(counts[index]), space.ordered[index]) for index in varied]
        places = [space.levels[:, index] for index in varied]
        every = [kernel[place][:, place] for kernel, place in zip(kernels, places, strict=True)]
        self.settings = np.array(every) if every else np.zeros((0, *[len(space.levels)] * 2))
        self.log_load = np.log(space.load)
        self.has_curves = len(set(space.load)) > 1
        size = (EFFECT,) * len(varied) + (INTERACTION, OWN, LAUNCH_NOISE)
        self.usual = np.log(np.array(size))
        self.spread = np.array([SPREAD_OF_PRIOR[0]] * len(varied) + [*SPREAD_OF_PRIOR[1:]])
        self.parameters = self.usual
        self._kept: tuple[bytes, Floats, Floats] | None = None

    @property
    def launch_noise(self) -> float:
        return float(np.exp(self.parameters[-1]))

    def covariance(self, parameters: Floats, one: Ints, other: Ints) -> Floats:
        """Return the covariance between points: shape (one, other)."""
        first, second = self.space.configuration[one], self.space.configuration[other]
        rows, row = np.unique(first, return_inverse=True)
        columns, column = np.unique(second, return_inverse=True)
        alike = self.settings[:, rows[:, None], columns]
        squares = np.exp(2 * parameters[:-3])
        share = np.sqrt(squares / (squares + HALF_INTERACTING**2))
        pairs = (np.tensordot(share, alike, 1) ** 2 - np.tensordot(share**2, alike**2, 1)) / 2
        interaction, own = np.exp(2 * parameters[-3:-1])
        same = first[:, None] == second
        total: Floats = COMMON**2 + np.tensordot(squares, alike, 1) + interaction * pairs
        total = total[row][:, column] + own * same
        if self.has_curves:
            apart = (self.log_load[one][:, None] - self.log_load[other]) ** 2
            total *= np.exp(-apart / (2 * LOAD_LENGTH**2))
            total += same * CURVE**2 * np.exp(-apart / (2 * CURVE_LENGTH**2))
        return total

    def noisy(self, parameters: Floats, measured: Observations) -> Floats:
        """Return the covariance of measured values."""
        launched_together = measured.launch[:, None] == measured.launch
        total = self.covariance(parameters, measured.point, measured.point)
        noise = np.exp(2 * parameters[-1]) * launched_together + TRIAL_NOISE**2 * np.eye(len(measured.point))
        return np.asarray(total + noise)

    def fit(self, measured: Observations) -> None:
        """Choose the parameters that explain these values best, from those so far."""
        residual = measured.value - self.mean(measured)[measured.point]

        def loss(parameters: Floats) -> float:
            prior = float((((parameters - self.usual) / self.spread) ** 2).sum()) / 2
            try:
                lower = scipy.linalg.cholesky(self.noisy(parameters, measured), lower=True)
            except np.linalg.LinAlgError:
                return 1e9
            white = scipy.linalg.solve_triangular(lower, residual, lower=True)
            return float(white @ white) / 2 + float(np.log(np.diag(lower)).sum()) + prior

        below = scipy.optimize.Bounds(-np.inf, self.usual + MOST_SPREADS * self.spread)
        fitted = scipy.optimize.minimize(
            loss, self.parameters, method="L-BFGS-B", bounds=below, options={"maxiter": FIT_STEPS}
        )
        self.parameters = fitted.x

    def mean(self, measured: Observations) -> Floats:
        """Return the expected value at every point: (a + b·√load + c·load) / √GPUs, with a, b, c of 0 or more."""
        load, gpus = self.space.load, self.space.gpus[self.space.configuration]
        design = np.stack([np.ones_like(load), np.sqrt(load), load], 1) / np.sqrt(gpus)[:, None]
        design = design if self.has_curves else design[:, :1]
        scaled = design[measured.point] / np.exp(measured.value)[:, None]
        return np.asarray(np.log(design @ np.maximum(scipy.optimize.nnls(scaled, np.ones(len(scaled)))[0], 1e-12)))

    def draws(
        self, measured: Observations, random: np.random.Generator, count: int, unmeasured: bool = False
    ) -> Floats:
        """Return joint samples of the value at every point: shape (count, points).

        They spread more if the model predicts the measured values badly, each from all others; for points that were not
        measured (`unmeasured`), also for the parameters that were fitted to the measured ones.
        """
        own, launches = measured.point, np.unique(measured.launch, return_inverse=True)[1]
        factor = scipy.linalg.cholesky(self.noisy(self.parameters, measured), lower=True)
        cross = self._prior()[1][:, own]
        mean = self.mean(measured)
        residual = scipy.linalg.cho_solve((factor, True), measured.value - mean[own])
        inverse = scipy.linalg.cho_solve((factor, True), np.eye(len(own)))
        surprise = max(1.0, float(np.mean(residual**2 / np.diag(inverse))))
        if unmeasured:  # as in a regression, but at most twice
            points = len(np.unique(own))
            surprise *= points / max(points - len(self.parameters), points / 2)
        prior = self._prior()[2] @ random.normal(size=(self.space.size, count))
        noise = self.launch_noise * random.normal(size=(int(launches.max()) + 1, count))[launches]
        noise += TRIAL_NOISE * random.normal(size=noise.shape)
        around = prior - cross @ (inverse @ (prior[own] + noise))
        spread = np.sqrt(surprise)
        return np.asarray((mean + cross @ residual)[:, None] + spread * around).T

    def variance(self, point: Ints) -> Floats:
        """Return the variance at every point if these were measured, one launch each."""
        every = np.arange(self.space.size)
        covariance = self.covariance(self.parameters, point, every)
        alone = np.einsum("ii->i", self._prior()[1])
        if not len(point):
            return np.asarray(alone)
        noisy = self.noisy(self.parameters, Observations(point, np.arange(len(point)), np.zeros(len(point))))
        white = scipy.linalg.solve_triangular(scipy.linalg.cholesky(noisy, lower=True), covariance, lower=True)
        return np.asarray(alone - (white**2).sum(0))

    def _prior(self) -> tuple[bytes, Floats, Floats]:
        """Return the covariance of all points and its factor, with the parameters that they are of."""
        key = self.parameters.tobytes()
        if self._kept is None or self._kept[0] != key:
            every = np.arange(self.space.size)
            covariance = self.covariance(self.parameters, every, every) + 1e-8 * np.eye(len(every))
            self._kept = key, covariance, scipy.linalg.cholesky(covariance, lower=True)
        return self._kept
