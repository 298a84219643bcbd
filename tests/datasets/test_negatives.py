import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fuxictr_mm.datasets.negatives import sample_negatives, sample_repeats
from fuxictr_mm.datasets.reader import SPLITS

USERS, ITEMS, PER_USER = 600, 80, 20


@pytest.fixture(params=["same", "new items"])
def log(request):
    """Clicks without any signal, the last two of a user in valid and test; items of all times, or of one split."""
    random = np.random.default_rng(0)
    split = np.minimum(np.arange(PER_USER) - PER_USER + 3, 2).clip(0)
    items = np.stack([random.permutation(ITEMS)[:PER_USER] for _ in range(USERS)])
    if request.param == "new items":
        items += ITEMS * split
    return np.repeat(np.arange(USERS), PER_USER), items.ravel(), np.tile(np.array(SPLITS)[split], USERS)


def test_what_was_sampled_in_training_does_not_tell_the_clicks_of_test(log):
    users, items, splits = log
    random = np.random.default_rng(1)
    draw = {s: lambda given, of=items[splits == s]: random.choice(of, len(given)) for s in SPLITS}
    found, failed = sample_negatives(users, items, splits, 3 * ITEMS, np.arange(len(users)), draw)
    assert failed is None
    train, test = splits == "train", splits == "test"
    number = 3 * ITEMS
    of_pairs = np.bincount((users * number + found)[train], minlength=USERS * number)
    of_items = np.bincount(found[train], minlength=number)
    labels = np.repeat([1, 0], test.sum())
    both = np.r_[items[test], found[test]]
    for counts in (of_pairs[np.tile(users[test], 2) * number + both], of_items[both]):
        assert roc_auc_score(labels, -counts) == pytest.approx(0.5, abs=0.04)
    known = set(zip(users, items, strict=True))
    assert not known & set(zip(users[test], found[test], strict=True))
    assert not set(zip(users[train], items[train], strict=True)) & set(zip(users[train], found[train], strict=True))


def test_a_user_of_all_items_is_named():
    users, items, splits = np.array([0, 1, 1, 1]), np.array([0, 0, 1, 0]), np.array(["train"] * 3 + ["test"])
    draw = {split: lambda given: np.zeros(len(given), dtype=int) for split in SPLITS}
    assert sample_negatives(users, items, splits, 2, np.array([3]), draw)[1] == 3


def test_negatives_of_a_repeated_item_are_others_of_its_history():
    # One user: items 0, 1, then 0 again; 0 and 2 at one moment; another user who only takes 0.
    users = np.array([0, 0, 0, 0, 0, 1, 1])
    items = np.array([0, 1, 0, 0, 2, 0, 0])
    begins, ends = np.array([0, 0, 0, 1, 1, 5, 5]), np.array([0, 1, 2, 3, 3, 5, 6])
    wanted = np.repeat(np.arange(7), 20)
    found = sample_repeats(users, items, begins, ends, wanted, np.full(len(wanted), 9), np.random.default_rng(0))
    assert [set(part) for part in found.reshape(7, 20).tolist()] == [{9}, {9}, {1}, {1}, {9}, {9}, {9}]
