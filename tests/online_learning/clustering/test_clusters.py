import numpy as np
import pytest

from online_learning.clustering.clusters import Birth, ClusterSettings, FeatureSpace, Neighbourhood, PromptClusters
from online_learning.features.prompt_features import DIMENSIONS, TEXT_DIMENSIONS
from online_learning.length_learner import Features


def _family_prompt(family: int, generator: np.random.Generator) -> Features:
    """A text part near its family's direction, scalars alike."""
    direction = np.random.default_rng(family).normal(size=TEXT_DIMENSIONS)
    text = direction / np.linalg.norm(direction) + 0.03 * generator.normal(size=TEXT_DIMENSIONS)
    text /= np.linalg.norm(text)
    return np.concatenate((text, np.zeros(DIMENSIONS - TEXT_DIMENSIONS))).astype(np.float32)


def _seeded(families: int, settings: ClusterSettings) -> PromptClusters:
    generator = np.random.default_rng(0)
    clusters = PromptClusters(settings)
    clusters.seed([_family_prompt(number % families, generator) for number in range(200)])
    return clusters


def test_families_get_clusters_of_their_own() -> None:
    """Four families, four clusters: prompts of one family fall together and apart from the others."""
    clusters = _seeded(4, ClusterSettings(clusters=4))
    generator = np.random.default_rng(1)
    found = [
        {clusters.neighbourhood(_family_prompt(family, generator)).cluster for _ in range(20)} for family in range(4)
    ]
    assert [len(names) for names in found] == [1, 1, 1, 1]
    assert len(set.union(*found)) == 4


def test_weights_sum_to_one_and_fall_with_distance() -> None:
    """The nearest cluster weighs most."""
    clusters = _seeded(8, ClusterSettings(clusters=8, nearest=3))
    near = clusters.neighbourhood(_family_prompt(2, np.random.default_rng(5)))
    assert near.slots.size == 3
    assert abs(near.weights.sum() - 1.0) < 1e-9
    assert near.weights.tolist() == sorted(near.weights, reverse=True)


def test_equal_prompts_make_one_cluster() -> None:
    """There are never more clusters than different prompts, and equal ones have no distance that is not a number."""
    prompt = _family_prompt(0, np.random.default_rng(0))
    clusters = PromptClusters(ClusterSettings())
    clusters.seed([prompt] * 50)
    near = clusters.neighbourhood(prompt)
    assert near.slots.tolist() == [0]
    assert near.weights.tolist() == [1.0]
    assert clusters.follow(near) == 0


def test_a_centroid_follows_its_prompts_and_never_jumps() -> None:
    """A family that wanders slowly keeps its cluster, though it ends nearer to where another one began."""
    clusters = _seeded(2, ClusterSettings(clusters=2, centroid_memory_prompts=50))
    start, end = (_family_prompt(family, np.random.default_rng(3)) for family in (0, 7))
    home = int(clusters.neighbourhood(start).slots[0])
    for share in np.linspace(0.0, 1.0, 600):
        moved = ((1.0 - share) * start + share * end).astype(np.float32)
        assert clusters.follow(clusters.neighbourhood(moved)) == home


def test_what_all_prompts_share_does_not_hide_their_differences() -> None:
    """A long system prompt in front of every prompt leaves them as far apart as before, about."""
    generator = np.random.default_rng(4)
    plain = np.stack([_family_prompt(number % 10, generator) for number in range(300)])
    shared = plain.copy()
    shared[:, 0] += 4.0
    shared[:, :TEXT_DIMENSIONS] /= np.linalg.norm(shared[:, :TEXT_DIMENSIONS], axis=1, keepdims=True)
    spreads = []
    for prompts in (plain, shared):
        space = FeatureSpace.of(prompts)
        points = space.points(list(prompts))
        spreads.append(float(np.linalg.norm(points[:100, None] - points[None, :100], axis=2).mean()))
    assert spreads[1] == pytest.approx(spreads[0], rel=0.1)


def test_a_scalar_that_never_varies_has_no_weight() -> None:
    """When all requests had one max_tokens at first, the first that has another is not torn away from its family."""
    generator = np.random.default_rng(6)
    space = FeatureSpace.of(np.stack([_family_prompt(0, generator) for _ in range(50)]))
    other = _family_prompt(0, generator)
    other[-2] = 3.0
    assert space.points([other])[0, -2] == 0.0


def test_few_prompts_make_few_clusters() -> None:
    """Thirty different prompts at six a cluster make five clusters, and forming them again starts afresh."""
    generator = np.random.default_rng(8)
    clusters = PromptClusters(ClusterSettings(nearest=64))
    prompts = [_family_prompt(number, generator) for number in range(200)]
    for count, expected in ((30, 5), (200, 33)):
        clusters.seed(prompts[:count])
        assert clusters.neighbourhood(prompts[0]).slots.size == expected


def test_a_family_that_appears_later_has_a_cluster_born() -> None:
    """Four families at first; a fifth gets a cluster of its own within 30 prompts, and the others keep theirs."""
    clusters = _seeded(4, ClusterSettings(clusters=8, fewest_prompts=50))
    generator = np.random.default_rng(2)
    homes = {}
    for number in range(400):
        near = clusters.neighbourhood(_family_prompt(number % 4, generator))
        assert _born(clusters, near) is None, "nothing new yet"
        clusters.follow(near)
        homes[number % 4] = near.cluster
    births = []
    for _ in range(30):
        near = clusters.neighbourhood(_family_prompt(9, generator))
        births.append(_born(clusters, near))
        clusters.follow(clusters.neighbourhood(_family_prompt(9, generator)))
    found = [clusters.id_of(born.slot) for born in births if born is not None]
    assert len(found) == 1
    assert found[0] not in homes.values()
    assert clusters.neighbourhood(_family_prompt(9, generator)).cluster == found[0]
    for family, home in homes.items():
        assert clusters.neighbourhood(_family_prompt(family, generator)).cluster == home


def test_a_birth_takes_the_room_of_an_idle_cluster_or_none() -> None:
    """With all slots taken, a new family waits until one of the old was idle for long enough."""
    clusters = _seeded(4, ClusterSettings(clusters=4, fewest_prompts=50, idle_prompts=300))
    generator = np.random.default_rng(2)
    idle = clusters.neighbourhood(_family_prompt(3, generator)).cluster
    births = []
    for number in range(500):
        near = clusters.neighbourhood(_family_prompt(9 if number >= 150 and number % 5 == 0 else number % 3, generator))
        births.append(_born(clusters, near))
        if births[-1] is None and near.distance < 0.5:
            clusters.follow(near)
    found = [(number, born) for number, born in enumerate(births) if born is not None]
    assert [born.retired for _, born in found] == [idle]
    assert clusters.neighbourhood(_family_prompt(9, generator)).cluster not in range(4), "the new one has a new id"
    assert found[0][0] >= 300


def test_a_slot_is_used_again_and_an_id_never() -> None:
    """After splits, merges and retirements every id was given once, and no more clusters live than there are slots."""
    clusters = _seeded(4, ClusterSettings(clusters=6, fewest_prompts=50, retire_prompts=40))
    generator = np.random.default_rng(3)
    given = {clusters.id_of(int(slot)) for slot in clusters.neighbourhood(_family_prompt(0, generator)).slots}
    for lap in range(30):
        if not clusters.full:
            kept, gone = (np.stack([_point(clusters, family, generator)] * 3) for family in (0, lap + 10))
            new = clusters.id_of(
                clusters.split(int(clusters.neighbourhood(_family_prompt(0, generator)).slots[0]), kept, gone)
            )
            assert new not in given
            given.add(new)
        if lap % 3 == 0:
            one, other = clusters.nearest_pairs(within=np.inf, most=1)[0]
            clusters.merge(*clusters.larger(one, other))
        for _ in range(10):
            clusters.follow(clusters.neighbourhood(_family_prompt(0, generator)))
        _retire(clusters)
        assert 1 <= clusters.count <= 6
    assert max(given) > 12


def _born(clusters: PromptClusters, near: Neighbourhood) -> Birth | None:
    birth = clusters.birth(near)
    if birth is not None:
        clusters.bear(birth)
    return birth


def _retire(clusters: PromptClusters) -> int | None:
    slot = clusters.retiring
    if slot is not None:
        clusters.retire(slot)
    return slot


def _point(clusters: PromptClusters, family: int, generator: np.random.Generator) -> np.ndarray:
    return clusters.neighbourhood(_family_prompt(family, generator)).point


def test_the_nearest_pairs_are_those_of_brute_force() -> None:
    """All pairs below a distance, the nearest first."""
    clusters = _seeded(8, ClusterSettings(clusters=12, fewest_prompts=20))
    centroids = clusters._centroids[~clusters._free]
    pairs = {
        (one, other): float(((centroids[one] - centroids[other]) ** 2).sum())
        for one in range(len(centroids))
        for other in range(one + 1, len(centroids))
    }
    within = float(np.median(list(pairs.values())))
    expected = sorted((pair for pair in pairs if pairs[pair] < within), key=lambda pair: pairs[pair])
    assert clusters.nearest_pairs(within=within, most=100) == expected
    assert clusters.nearest_pairs(within=within, most=3) == expected[:3]


def test_only_a_cluster_that_was_idle_for_very_long_is_retired() -> None:
    """Not before its time, and the last one never."""
    clusters = _seeded(2, ClusterSettings(clusters=4, fewest_prompts=50, retire_prompts=100))
    generator = np.random.default_rng(1)
    idle = clusters.neighbourhood(_family_prompt(1, generator)).cluster
    retired = []
    for number in range(400):
        clusters.follow(clusters.neighbourhood(_family_prompt(0, generator)))
        slot = _retire(clusters)
        retired += [] if slot is None else [(number, clusters.id_of(slot))]
    homes = {clusters.neighbourhood(_family_prompt(1, generator)).cluster}
    assert idle in [cluster for _, cluster in retired]
    assert all(number >= 99 for number, _ in retired)
    assert clusters.count >= 1
    assert idle not in homes
