"""Are perturbed images worth asking a model about? Distribution alignment, diversity, locality and cost of samplers.

Ademi, Noppel & Wressnegger, "POMELO: Black-Box Feature Attribution with Full-Input, In-Distribution Perturbations",
sections 3.1 to 3.3. The table of them is `sampler_quality.py`'s.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.core import Images
from lit_xai.errors import UsageError
from lit_xai.metrics.distance import ssim
from lit_xai.quality.plausibility import checked

BINS = 20  # of the probability entropy
WINDOW = 7  # side of SSIM's window, pixels
NEIGHBOURS = 15  # of UMAP
LEAST_ROWS = 10  # of UMAP


class Measure(NamedTuple):
    """A column of the table: which way is better ("up", "down", or "zero" = near 0), and what it says."""

    better: str
    meaning: str


MEASURES = {
    "mahalanobis": Measure(
        "down", "squared Mahalanobis distance of the features to the nearest class of the training images"
    ),
    "silhouette": Measure(
        "zero", "silhouette of real and sampled features in one UMAP plane; near 0 = indistinguishable"
    ),
    "label_entropy": Measure("up", "entropy of the predicted classes of an image's samples, nats"),
    "probability_entropy": Measure("up", f"entropy of the explained class's probability in {BINS} bins, bits"),
    "l2": Measure("down", "l2 distance of sample and image, all pixels and channels"),
    "ssim": Measure("up", f"structural similarity of sample and image, window {WINDOW}"),
    "seconds_per_1000": Measure("down", "seconds that the filler takes for 1000 samples, encoding included"),
}


@dataclass(frozen=True, eq=False)
class Mahalanobis:
    """min over classes c of (f - mu_c)' S^-1 (f - mu_c): how far features lie from the nearest class (Lee et al., 2018).

    Not rooted. S is one covariance for all classes, that of the class-centred features (divided by n), shrunk towards a
    multiple of the identity. In float64 on the CPU. Where there are more features than rows X, S is never made: with S = a X'X + b 1,
    d' S^-1 d = (|d|^2 - a (Xd)' (a XX' + b 1)^-1 Xd) / b (Woodbury's identity).

    Attributes:
        means: class means of the classes that have members; of fewer features than rows, times the inverse of `root`.
        root: lower Cholesky factor of S, or of a XX' + b 1.
        shrinkage: share of the identity in S, in [0, 1].
        rows: sqrt(a) X, where S is not made.
        ridge: b.
    """

    means: Float[Tensor, "k f"]
    root: Float[Tensor, "g g"]
    shrinkage: float
    rows: Float[Tensor, "g f"] | None = None
    ridge: float = 0.0

    @classmethod
    def fit(
        cls, features: Float[Tensor, "n f"], labels: Int[Tensor, "n"], shrinkage: float | None = None
    ) -> Mahalanobis:
        """The Gaussians of these (training) features.

        Args:
            features: one row an image.
            labels: its class.
            shrinkage: None = that of Ledoit & Wolf (2004; scikit-learn), which is least wrong in the mean square.

        Raises:
            UsageError: features that are not finite, fewer than two rows, a covariance without an inverse.
        """
        from sklearn.covariance import ledoit_wolf, shrunk_covariance

        x, classes = checked(features, len(labels)), labels.cpu().unique(return_inverse=True)
        if len(x) < 2:
            raise UsageError(f"a Mahalanobis score is fitted to at least two images, found {len(x)}: give more")
        one_hot = torch.nn.functional.one_hot(classes[1]).to(x.dtype)
        means = (one_hot.T @ x) / one_hot.sum(0)[:, None]
        centred, wide = x - means[classes[1]], x.shape[1] > len(x)
        if wide:
            found = centred @ centred.T
            shrinkage = ledoit_wolf_shrinkage(centred, found) if shrinkage is None else shrinkage
            share, ridge = (1 - shrinkage) / len(x), shrinkage * float(found.trace()) / x.numel()
            found = share * found + ridge * torch.eye(len(x), dtype=x.dtype)
            found = found if ridge > 0 else torch.full_like(found, torch.nan)  # S has no inverse, whatever this has
        elif shrinkage is None:
            found, shrinkage = ledoit_wolf(centred.numpy(), assume_centered=True)
        else:
            found = shrunk_covariance((centred.T @ centred / len(x)).numpy(), shrinkage)
        root, failed = torch.linalg.cholesky_ex(torch.as_tensor(found))
        if int(failed) or not bool(torch.isfinite(root).all()):
            raise UsageError(
                f"the covariance of {len(x)} x {x.shape[1]} features (shrinkage {shrinkage:.3g}) has no inverse: "
                f"the features do not vary within classes, or give more images or shrinkage > 0"
            )
        if wide:
            return cls(means, root, float(shrinkage), centred.mul_(share**0.5), ridge)
        return cls(whitened(means, root), root, float(shrinkage))

    def __call__(self, features: Float[Tensor, "m g"]) -> Float[Tensor, "m"]:
        """The score of every row, at least 0, without unit; its mean is the number of features for one class's own images.

        Raises:
            UsageError: features that are not finite, or of another width.
        """
        x = checked(features)
        if x.shape[1] != self.means.shape[1]:
            raise UsageError(f"{self.means.shape[1]} features were fitted, found {x.shape[1]}: take the same network's")
        z = whitened(x, self.root) if self.rows is None else x
        seen = None if self.rows is None else x @ self.rows.T
        best = torch.full((len(z),), torch.inf, dtype=z.dtype)
        for mean in self.means:  # class by class: memory does not grow with their number
            far = (z - mean).square().sum(1)
            if self.rows is not None:
                far = (far - whitened(seen - self.rows @ mean, self.root).square().sum(1)) / self.ridge
            best = torch.minimum(best, far)
        return best.clamp_min(0)


def ledoit_wolf_shrinkage(centred: Float[Tensor, "n f"], products: Float[Tensor, "n n"]) -> float:
    """The shrinkage of Ledoit & Wolf (2004) of rows and their products with each other, where the covariance is too large to be made."""
    n, f = centred.shape
    mean = float(products.trace()) / (n * f)
    total = float(products.square().sum()) / n**2  # of the squares of the covariance
    beta = (float(products.diagonal().square().sum()) / n - total) / n
    delta = total - f * mean**2
    return min(beta, delta) / delta if delta > 0 else 0.0


def whitened(x: Float[Tensor, "n f"], root: Float[Tensor, "f f"]) -> Float[Tensor, "n f"]:
    """Every row times the inverse of the lower triangular `root`."""
    return torch.linalg.solve_triangular(root, x.T, upper=False).T.contiguous()


def umap_plane(features: Float[Tensor, "n f"], seed: int = 0) -> Float[Tensor, "n 2"]:
    """A two-dimensional UMAP of the features (McInnes et al., 2018; umap-learn, 15 neighbours, min_dist .1, Euclidean).

    The same on every call, on one thread. It is a picture more than a measure: places depend on all rows together, and
    rounding errors of the features move them.

    Raises:
        UsageError: fewer than ten rows, features that are not finite.
    """
    x, threads = checked(features).float().numpy(), torch.get_num_threads()
    if len(x) < LEAST_ROWS:
        raise UsageError(f"UMAP needs at least {LEAST_ROWS} rows, found {len(x)}: give more images or draws")
    from umap import UMAP

    neighbours = min(NEIGHBOURS, len(x) - 1)
    reducer = UMAP(n_neighbors=neighbours, n_components=2, random_state=seed % 2**32, n_jobs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plane = reducer.fit_transform(x)
    torch.set_num_threads(threads)  # UMAP leaves all of them to OpenMP, which torch shares
    return torch.from_numpy(plane).double()


def silhouette(
    a: Float[Tensor, "n e"],
    b: Float[Tensor, "m e"],
    origin: Int[Tensor, "m"] | None = None,
    weight_a: Float[Tensor, "r n"] | None = None,
    weight_b: Float[Tensor, "r m"] | None = None,
) -> Float[Tensor, "r"]:
    """Mean silhouette of two sets of points (Rousseeuw, 1987), Euclidean, in [-1, 1]: near 0 = they lie among each other.

    Of one point, (o - s) / max(o, s) with s the mean distance to the others of its own set and o that to the other set; 0
    where it is alone in its set, as in scikit-learn.

    Args:
        a, b: the sets.
        origin: the image that each point of `b` is a sample of. Samples of one image are not compared with each other:
            they lie near each other however many images there are, and would keep apart sets that are alike. None = all
            of different images (scikit-learn's `silhouette_score`; in the paper, nearly so).
        weight_a, weight_b: how often every point counts in resample r, equal for points of one image; copies of a point
            are not compared with each other. None = once, r = 1.
    """
    weight_a = torch.ones(1, len(a), dtype=a.dtype) if weight_a is None else weight_a
    weight_b = torch.ones(1, len(b), dtype=b.dtype) if weight_b is None else weight_b
    origins = (torch.arange(len(a)), torch.arange(len(b)) if origin is None else origin)
    between, total = distances(a, b), torch.zeros(1, dtype=a.dtype)
    sides = ((a, between, weight_a, weight_b), (b, between.T, weight_b, weight_a))
    for (points, across, own, other), source in zip(sides, origins, strict=True):
        same = source[:, None] == source[None]
        company = own.sum(1, keepdim=True) - own @ same.to(own.dtype)
        near = (own @ distances(points, points).masked_fill(same, 0.0)) / company.clamp_min(1)
        far = (other @ across.T) / other.sum(1, keepdim=True)
        largest = torch.maximum(near, far)
        value = torch.where((company > 0) & (largest > 0), (far - near) / largest, 0.0)
        total = total + (own * value).sum(1)
    return total / (weight_a.sum(1) + weight_b.sum(1))


def distances(a: Float[Tensor, "n e"], b: Float[Tensor, "m e"]) -> Float[Tensor, "n m"]:
    """Euclidean distances of all pairs, exact at 0."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def label_entropy(predicted: Int[Tensor, "b n"]) -> Float[Tensor, "b"]:
    """-sum_c p_c ln p_c of the shares p_c of the n samples of an image that are predicted as class c, nats.

    In [0, ln min(n, classes)]. Few samples bias it downwards: compare equal n.
    """
    classes = int(predicted.max()) + 1
    counts = torch.zeros(len(predicted), classes, dtype=torch.float64, device=predicted.device)
    counts.scatter_add_(1, predicted, torch.ones_like(predicted, dtype=torch.float64))
    return torch.special.entr(counts / predicted.shape[1]).sum(1)


def probability_entropy(probability: Float[Tensor, "b n"], bins: int = BINS) -> Float[Tensor, "b"]:
    """-sum_j p_j log2 p_j of the shares p_j of the n probabilities of an image that fall into equal bins of [0, 1], bits.

    Bin j is [j / bins, (j + 1) / bins), the last one closed. In [0, log2 min(n, bins)]. The paper calls it a differential
    entropy of 20 bins; that is this minus log2 20 and never positive, while the values it prints are those of this one.

    Raises:
        UsageError: numbers outside [0, 1].
    """
    if not bool(((probability >= 0) & (probability <= 1)).all()):
        raise UsageError("probabilities must lie in [0, 1]: check the model's outputs for NaN")
    return label_entropy((probability.double() * bins).long().clamp_max(bins - 1)) / math.log(2)


def pixel_distance(images: Images, others: Images) -> Float[Tensor, "b"]:
    """The l2 norm of the difference of every pair over all pixels and channels, in [0, sqrt(c h w)]."""
    return torch.linalg.vector_norm((images - others).flatten(1).double(), dim=1)


def image_ssim(images: Images, others: Images) -> Float[Tensor, "b"]:
    """Structural similarity of every pair, mean over channels, in [-1, 1]; 1 = equal (Wang et al., 2004).

    Uniform window of 7 pixels a side, the image's where that is less, and sample covariance: scikit-image's
    `structural_similarity(data_range=1)`.
    """
    side = min(images.shape[-2:])
    window = min(WINDOW, side - 1 + side % 2)
    return ssim(images.flatten(0, 1), others.flatten(0, 1), window, 1.0).view(images.shape[:2]).mean(1)
