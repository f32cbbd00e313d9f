"""A world whose true next-item probability is known for every history.

Real data never show P(i | history): Precision@K stands in for it. Here it is a formula, so that
Theorem 5.1 and every calibration claim can be tested against the truth.

    P(i | history) = w(g(i) | history) · q(i),        q(i) = popularity of i inside its genre g(i)
    w(g | history) = explore · popularity(g)
                   + follow  · [g is the sequel of the last item's genre]
                   + (1 − explore − follow) · taste(g | history)
    taste(g)       = Σ_j memoryʲ · [item j back is of genre g] / Σ_j memoryʲ

Popularity is Zipf's law over a random order of the items. A Transformer can learn `w`: attention to
the last item gives the sequel, decaying attention to the rest gives the taste.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gsas_lab.errors import InputError

_GENRES = (
    "Adventure Ballad Comedy Drama Essay Fable Gothic History Idyll Jazz Kitchen Legend Mystery "
    "Noir Opera Poetry Quest Romance Satire Travel Utopia Verse Western Xenia Youth Zen"
).split()

_SHORTEST, _SPREAD = 5, 1.2  # of users' lengths: the fewest interactions, σ of their logarithm


@dataclass(frozen=True)
class World:
    """Sizes, seed and habits of one world; everything else follows from them.

    From a toy to millions of items: nothing of size (n_items, n_items) is ever built, and sampling
    costs O(log n_items) an interaction.
    """

    n_users: int = 12_000  # users to draw
    length: int = 50  # interactions of each user
    interactions: int | None = None  # of all users, whose lengths then differ, see `lengths`
    n_items: int = 1_000  # catalogue, padding excluded
    n_genres: int = 20  # groups of items that are consumed alike
    zipf: float = 1.0  # exponent of the popularity law
    explore: float = 0.1  # share of interactions in any genre, by its popularity
    follow: float = 0.5  # share of interactions in the sequel of the last item's genre
    memory: float = 0.8  # weight of an item in the taste, relative to the one after it
    seed: int = 0  # of the catalogue and of the users

    def __post_init__(self) -> None:
        if not 1 <= self.n_genres <= self.n_items:
            raise InputError(
                f"World: n_genres = {self.n_genres} must lie between 1 and n_items = {self.n_items}."
            )
        if min(self.explore, self.follow) < 0 or self.explore + self.follow > 1:
            raise InputError(
                f"World: explore = {self.explore} and follow = {self.follow} are shares: "
                "give numbers of at least 0 whose sum is at most 1."
            )
        if self.interactions is not None and self.interactions < _SHORTEST * self.n_users:
            raise InputError(
                f"World: interactions = {self.interactions:,} leave {self.n_users:,} users less than "
                f"{_SHORTEST} each: give more, or none."
            )
        if not 0 < self.memory <= 1 or self.zipf < 0 or min(self.n_users, self.length) < 1:
            raise InputError(
                "World: memory must lie in (0, 1], zipf be at least 0, n_users and length be "
                f"at least 1; got {self.memory}, {self.zipf}, {self.n_users}, {self.length}."
            )

    # --- the catalogue ---------------------------------------------------------------------------

    @cached_property
    def _catalogue(self) -> tuple[np.ndarray, ...]:
        """Popularity, genre, order by genre, its cumulative popularity, genre bounds, sequels."""
        rng = np.random.default_rng(self.seed)
        popularity = np.zeros(self.n_items + 1)
        popularity[1:] = rng.permutation(np.arange(1, self.n_items + 1) ** -self.zipf)
        popularity /= popularity.sum()
        genre = np.full(self.n_items + 1, -1)  # padding has none
        genre[1:] = rng.permutation(np.arange(self.n_items) % self.n_genres)
        by_genre = np.argsort(genre[1:], kind="stable") + 1
        cumulative = np.concatenate([[0.0], np.cumsum(popularity[by_genre])])
        bounds = np.searchsorted(genre[by_genre], np.arange(self.n_genres + 1))
        circle = rng.permutation(self.n_genres)  # each genre is followed by the next on a circle
        sequel = np.empty(self.n_genres, dtype=int)
        sequel[circle] = np.roll(circle, -1)
        return popularity, genre, by_genre, cumulative, bounds, sequel

    @property
    def popularity(self) -> np.ndarray:
        """(n_items + 1,) share of each item by Zipf's law; 0 for padding."""
        return self._catalogue[0]

    @property
    def genre(self) -> np.ndarray:
        """(n_items + 1,) genre of each item, 0…n_genres − 1; −1 for padding."""
        return self._catalogue[1]

    @property
    def sequel(self) -> np.ndarray:
        """(n_genres,) the genre that tends to follow each genre."""
        return self._catalogue[5]

    @cached_property
    def genre_popularity(self) -> np.ndarray:
        """(n_genres,) share of each genre by popularity."""
        cumulative, bounds = self._catalogue[3:5]
        return np.diff(cumulative[bounds])

    @cached_property
    def within_genre(self) -> np.ndarray:
        """(n_items + 1,) q(i): share of each item inside its genre; 0 for padding."""
        share = self.popularity.copy()
        share[1:] /= self.genre_popularity[self.genre[1:]]
        return share

    @cached_property
    def genre_names(self) -> list[str]:
        """A readable name for each genre."""
        return [
            _GENRES[g % len(_GENRES)] + (f" {g // len(_GENRES) + 1}" if g >= len(_GENRES) else "")
            for g in range(self.n_genres)
        ]

    @cached_property
    def item_genre_names(self) -> np.ndarray:
        """(n_items + 1,) the genre's name for each item."""
        return np.array(["padding", *(self.genre_names[g] for g in self.genre[1:])])

    @cached_property
    def item_names(self) -> np.ndarray:
        """(n_items + 1,) such as "Noir no. 3": the third most popular item of its genre."""
        names = np.array(["padding"] * (self.n_items + 1), dtype=object)
        _, _, by_genre, _, bounds, _ = self._catalogue
        for g, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            members = by_genre[start:end]
            best_first = members[np.argsort(-self.popularity[members], kind="stable")]
            names[best_first] = [f"{self.genre_names[g]} no. {n + 1}" for n in range(end - start)]
        return names.astype(str)

    # --- the truth -------------------------------------------------------------------------------

    def genre_probability(self, histories: np.ndarray) -> np.ndarray:
        """w(g | history), exact. Histories (B, T) of items, oldest first, 0 = padding on either
        side -> (B, n_genres). An empty history gives the popularity of the genres.
        """
        histories = np.asarray(histories)
        if (
            histories.ndim != 2
            or histories.size
            and not (0 <= histories.min() and histories.max() <= self.n_items)
        ):
            raise InputError(
                f"World: histories must be an array (B, T) of items 0…{self.n_items} "
                f"(0 = padding); got shape {histories.shape}."
            )
        taste = np.zeros((len(histories), self.n_genres))
        total = np.zeros(len(histories))
        last = np.full(len(histories), -1)
        for column in histories.T:  # oldest first: decay what was, add what is new
            rows = np.flatnonzero(column)
            genre = self.genre[column[rows]]
            taste[rows] *= self.memory
            taste[rows, genre] += 1
            total[rows] = total[rows] * self.memory + 1
            last[rows] = genre
        return self._mix(taste, total, last)

    def _mix(self, taste: np.ndarray, total: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Taste (B, G), its total weight (B,) and the last genre (B,) -> w (B, G)."""
        started = np.flatnonzero(total)
        weight = np.tile(self.genre_popularity, (len(taste), 1))
        weight[started] *= self.explore
        weight[started, self.sequel[last[started]]] += self.follow
        own = (1 - self.explore - self.follow) * taste[started] / total[started, None]
        weight[started] += own
        return weight

    def probability(self, histories: np.ndarray) -> np.ndarray:
        """P(i | history) of the whole catalogue: histories (B, T) -> (B, n_items + 1) float64.

        Column 0 (padding) is 0 and each row sums to 1.
        """
        share = self.within_genre.copy()
        prob = self.genre_probability(histories)[:, np.maximum(self.genre, 0)]
        prob *= share
        return prob

    # --- users -----------------------------------------------------------------------------------

    @property
    def lengths(self) -> np.ndarray:
        """(n_users,) interactions of each user: `length`, or log-normal above the shortest, as in
        Gowalla, so that they add up to `interactions`.
        """
        if self.interactions is None:
            return np.full(self.n_users, self.length)
        rng = np.random.default_rng([self.seed, 2])
        more = np.cumsum(np.exp(_SPREAD * rng.standard_normal(self.n_users)))
        more *= (self.interactions - _SHORTEST * self.n_users) / more[-1]
        return _SHORTEST + np.diff(np.rint(more).astype(np.int64), prepend=0)

    def sample(
        self, n_users: int | None = None, length: int | None = None, seed: int | None = None
    ) -> np.ndarray:
        """Users drawn from the world: (n_users, length) int32 items, oldest first."""
        n_users, length = n_users or self.n_users, length or self.length
        return self.users(np.full(n_users, length), seed).reshape(n_users, length)

    def users(self, lengths: np.ndarray, seed: int | None = None) -> np.ndarray:
        """Users with these many interactions (n,) drawn from the world, user after user: int32 items.

        All users advance together; each draw is w (genre), then a binary search inside the genre.
        """
        rng = np.random.default_rng([self.seed if seed is None else seed, 1])
        _, _, by_genre, cumulative, bounds, _ = self._catalogue
        order = np.argsort(-lengths, kind="stable")  # those who go on stand first
        begin = (np.cumsum(lengths) - lengths)[order]
        going = np.searchsorted(-lengths[order], -np.arange(lengths.max(initial=0)), side="left")
        items = np.zeros(lengths.sum(), dtype=np.int32)
        taste = np.zeros((len(lengths), self.n_genres))
        total, last = np.zeros(len(lengths)), np.full(len(lengths), -1)
        for step, n in enumerate(going):
            taste, total, last = taste[:n], total[:n], last[:n]
            weight = np.cumsum(self._mix(taste, total, last), axis=1)
            genre = (rng.random((n, 1)) * weight[:, -1:] >= weight).sum(axis=1)
            low, high = bounds[genre], bounds[genre + 1]
            point = cumulative[low] + rng.random(n) * (cumulative[high] - cumulative[low])
            place = np.searchsorted(cumulative, point, side="right") - 1
            items[begin[:n] + step] = by_genre[np.clip(place, low, high - 1)]
            taste *= self.memory
            taste[np.arange(n), genre] += 1
            total, last = total * self.memory + 1, genre
        return items


# By the name under which `interactions.load` knows them.
WORLDS = {
    "known-truth": World(),
    # For proofs: eight different P, two million interactions. One pass is enough, no interaction is
    # seen twice, and what is left between σ(s) and Theorem 5.1 is not the encoder's fault.
    "known-truth-small": World(n_users=40_000, n_items=200, n_genres=8, explore=0.3, follow=0.7),
    # The size of Gowalla, the largest data set of the paper, and as sparse.
    "known-truth-million": World(n_users=86_168, n_items=1_271_638, interactions=6_397_903),
}
