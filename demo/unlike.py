"""Is one picture unlike what the model was checked on? A window has many pictures to
compare, a picture is alone.
"""

import math

import numpy as np
from sklearn.neighbors import NearestNeighbors

import utils

# Two views, as each is blind to something: what the network makes of a picture, and
# what camera and light made of it.
VIEWS = {
    "embedding": "what the network sees",
    "statistics": "brightness, contrast, sharpness and the like",
}
BLIND = (
    "This test cannot see a change of the class mix or a slow trend, which no single"
    " picture shows; nor what neither the network nor these numbers react to. Of normal"
    " pictures, at most about one in twenty is called unlike."
)


class PictureTest:
    """Distance of a picture to its k-th nearest neighbour in the reference, as an
    empirical p-value.

    The yardstick are the reference's own distances, each picture left out of its own
    neighbours: p = (b + 1) / (n + 1), where b of n pictures of the reference lie at
    least as far out. Sources: Sun et al., Out-of-distribution detection with deep
    nearest neighbors (2022); Bates et al., Testing for outliers with conformal p-values
    (2023).

    `alpha` is the largest share of normal pictures that may be called unlike; each of
    the two views gets half of it (Bonferroni), in whole pictures of the reference, so
    that a small one calls fewer: of 102 not 5 % but 3.9 %.
    """

    def __init__(self, reference: utils.Observation, k: int = 5, alpha: float = 0.05):
        self.k, self.alpha = min(k, len(reference) - 1), alpha
        statistics = reference.statistics.to_numpy()
        self.mean = statistics.mean(axis=0)
        self.std = np.maximum(statistics.std(axis=0), 1e-6)
        self.names = list(reference.statistics.columns)
        self.neighbours, self.own = {}, {}
        for view in VIEWS:
            fitted = NearestNeighbors(n_neighbors=self.k)
            fitted.fit(self._features(reference, view))
            self.neighbours[view] = fitted
            self.own[view] = fitted.kneighbors()[0][:, -1]

    def _features(self, seen: utils.Observation, view: str) -> np.ndarray:
        """A view, float (N, F); the statistics have different units, so each is counted
        in its own spread.
        """
        features = np.asarray(getattr(seen, view), dtype=np.float64)
        return (features - self.mean) / self.std if view == "statistics" else features

    def look(self, seen: utils.Observation) -> dict[str, utils.DriftResult]:
        """Judge one picture, an Observation of length 1, in both views."""
        results, limit = {}, self.alpha / len(VIEWS)
        for view, neighbours in self.neighbours.items():
            near, _ = neighbours.kneighbors(self._features(seen, view))
            distance = float(near[0, -1])
            own = np.sort(self.own[view])[::-1]
            p_value = float((1 + (own >= distance - 1e-12).sum()) / (len(own) + 1))
            # 0: so few pictures never give a p-value that small
            allowed = math.floor(limit * (len(own) + 1) + 1e-9)
            threshold = float(own[allowed - 1]) if allowed else math.inf
            results[view] = utils.DriftResult(
                view, distance, p_value, threshold, limit, 1, len(own)
            )
        return results

    def furthest(self, seen: utils.Observation) -> tuple[str, float]:
        """The statistic that is furthest from the reference's mean, and how many
        standard deviations.
        """
        deviations = self._features(seen, "statistics")[0]
        worst = int(np.abs(deviations).argmax())
        return self.names[worst], float(deviations[worst])
