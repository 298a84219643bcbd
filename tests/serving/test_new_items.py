"""Items that an export does not hold score by their content."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.serving.export import _sizes, export
from fuxictr_mm_serving import Export, ServingError
from fuxictr_mm_serving.new_items import ItemRows, NewItem, NewItems
from fuxictr_mm_serving.tables import Ids
from tests.errors import raises_naming
from tests.paths import ROOT, TINY
from tests.serving.scores import NOISE, eager, load_model

pytest.importorskip("onnxscript")

CONTEXT = {"likes_level": 3, "views_level": 2, "user_id": 7}


def test_codes_beyond_their_vocabulary_are_refused():
    items = NewItems({}, {"a": 1, "b": 2}, {"a": 17})
    unseen = ItemRows(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.int64))
    assert items.rows([NewItem({}, {"a": [16], "b": [99, 3]})], unseen).codes.tolist() == [[16, 99, 3]]
    for code in (17, -1, 2**40):
        with raises_naming(ServingError, "'a'", "16"):
            items.rows([NewItem({}, {"a": [code]})], unseen)
    with raises_naming(ServingError, "'b'", "left out"):  # no list: an item of training has both
        items.rows([NewItem({}, {"b": []})], unseen)


def test_columns_that_only_similarities_read_take_what_the_owner_has():
    """Texts, ids of items, integers written as texts, and fewer than an item has at most."""
    known = Ids(["red", "blue"], is_integer=False)
    words = {"tags": known.encode, "similar": lambda ids, what: np.array([7 if i == "x" else -1 for i in ids])}
    counts = {"tags": 3, "similar": 2, "numbers": 2}
    items = NewItems({}, counts, {"numbers": 9}, words=words, lists=["tags", "similar", "numbers"])
    unseen = ItemRows(np.zeros((1, 3), np.float32), np.zeros((1, 7), np.int64))
    given = {"tags": ["blue", "new"], "similar": ["x"], "numbers": ["8"]}
    assert items.rows([NewItem({}, given)], unseen).codes.tolist() == [[0, 2, 0, 0, 7, 0, 8]]
    none = items.rows([NewItem({}, {name: [] for name in counts})], unseen)
    assert none.codes.tolist() == [[0] * 7]
    for name, wrong, found in (("tags", ["red"] * 4, "4"), ("numbers", ["9"], "9")):
        with raises_naming(ServingError, f"'{name}'", found):
            items.rows([NewItem({}, {name: wrong})], unseen)


def test_a_column_that_only_a_similarity_reads_has_the_words_of_its_owner():
    of = {"name": "near", "type": "similarity", "of": "item_tags", "statistics": ["mean"]}
    experiment = Experiment.load("DIN_MM_tiny", ROOT, verbose=0)
    columns = [*experiment.config.dataset.feature_cols, of]
    settings = {"feature_cols": columns, "use_features": ["item_id", "near"]}
    dataset = Experiment.load("DIN_MM_tiny", ROOT, verbose=0, **settings).load_dataset({"valid": True})
    assert "item_tags" not in dataset.feature_map.features
    assert _sizes(dataset, ["item_tags"]) == {"item_tags": 193}


def test_a_new_item_by_its_ids(exported):
    found, item = Export(exported), 9
    table = pq.read_table(TINY / "item_feature.parquet", columns=["item_id", "item_tags"]).to_pylist()
    tags = next([*filter(None, row["item_tags"])] for row in table if row["item_id"] == item)
    fields = found.manifest.items.fields
    start = sum([*fields.values()][: [*fields].index("item_tags")])
    columns = slice(start, start + fields["item_tags"])
    row, stored = found.embed_new([NewItem({}, {"item_tags": tags})]), found.items.table.rows(np.array([0, item]))
    np.testing.assert_allclose(row.values[0, columns], stored[1, columns], atol=1e-6)
    assert np.abs(row.values[0, columns]).max() > 1e-3
    row.values[0, columns] = stored[0, columns]
    np.testing.assert_array_equal(row.values[0], stored[0])
    none = found.embed_new([NewItem({}, {"item_tags": []})])
    np.testing.assert_allclose(none.values, found.embed_new([NewItem()]).values)  # an item of the files without tags
    for wrong in ([1] * 6, [10**6], [-1], ["x"]):
        with raises_naming(ServingError, "item_tags"):
            found.embed_new([NewItem({}, {"item_tags": wrong})])


@pytest.mark.slow
def test_items_without_training_rows_share_a_trained_embedding(weights_of, tmp_path):
    """In histories and as candidates, whether they are in the item files, only posted, or neither."""
    specs = [{"name": "item_id", "dropout": 0.1, "unknown": "trained"}]
    experiment, weights = weights_of("DIN_MM_tiny", max_len=1000, feature_specs=specs, factor_dim=3)
    weights_of_half = torch.load(weights)
    weights_of_half["unknown_item.seen"][::2] = True  # of no item: the weights are not trained
    torch.save(weights_of_half, weights)
    export(experiment, tmp_path / "out", weights=weights, tolerance=NOISE)
    model, exported = load_model(experiment, weights), Export(tmp_path / "out")
    context = {name: value for name, value in CONTEXT.items() if name in model.context_fields}
    for history in ([], list(range(1, 60))):
        state = exported.user_state(context, history)
        found, _ = exported.score_candidates(state, [4, 5, 6, 7])
        np.testing.assert_allclose(found, eager(model, context, history, [4, 5, 6, 7]), atol=NOISE, rtol=0)
        # An item that nothing is known of is that of the model's row 0.
        (unknown,), _ = exported.score_candidates(state, [10**6])
        (posted,) = exported.score_items(state, exported.embed_new([NewItem()]))
        (expected,) = eager(model, context, history, [0])
        assert (unknown, posted) == pytest.approx((expected, expected), abs=NOISE)
    shared = eager(model, context, history, [0, 5, 7])
    model.unknown_item.embedding.data.zero_()
    assert np.abs(eager(model, context, history, [0, 5, 7]) - shared).min() > NOISE


#: Experiments whose models read contents or codes of the items, and what else they are given.
NEW = [
    *(("DIN_MM_tiny", name) for name in ("txt_emb_pca8", "item_tags")),
    *((f"{name}_tiny", "") for name in ("DIN_MM_VQ", "MUSE", "SEMINAR")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("expid", "compared"), NEW)
def test_new_items_have_the_posted_content_in_every_use(weights_of, tmp_path, expid, compared):
    """They score as an item of the files that is new since training, with the same content and nothing else."""
    settings = {}
    if compared:
        of = {"name": "near", "type": "similarity", "of": compared, "statistics": ["mean", "max"]}
        columns = [*Experiment.load(expid, ROOT).config.dataset.feature_cols, of]
        settings = {"feature_cols": columns, "use_features": None}
    experiment, weights = weights_of(expid, max_len=1000, **settings)
    export(experiment, tmp_path / "out", weights=weights, tolerance=NOISE)
    model = load_model(experiment, weights)
    generator = torch.Generator().manual_seed(1)
    entry = json.loads((tmp_path / "out" / "manifest.json").read_text())["items"]
    embeddings = {n: torch.randn(c["dim"], generator=generator) for n, c in entry["contents"].items()}
    counts = entry["codes"]["columns"] if "codes" in entry else {}
    if counts:
        sizes = {"item_tags": 193}
        assert entry["codes"]["vocab_sizes"] == {name: sizes.get(name, 65) for name in counts}  # of dataset_config.yaml
    codes = {name: torch.randint(1, 16, (count,), generator=generator) for name, count in counts.items()}
    codes |= {e["name"]: torch.randint(1, e["vocab_size"], (e["max_len"],), generator=generator) for e in entry["ids"]}
    given = NewItem({n: v.tolist() for n, v in embeddings.items()}, {n: v.tolist() for n, v in codes.items()})
    number = model.items.num_items
    columns = {}
    for column in model.items.names:
        old = model.items.stored(column)
        row = {**embeddings, **codes}.get(column, torch.zeros(1)).expand(old[0].shape).to(old.dtype)[None]
        columns[column] = torch.cat([old, row])
    known = torch.cat([model.items.known, torch.tensor([True])])
    more = ItemTable(columns, known, num_trained=number, scales=model.items.scales)
    model.items = more
    if "codes" in dict(model.named_buffers()):
        model.codes = torch.cat([more.stored(column) for column in model.per_item_codes], dim=1)
    for name, layer in model.similarities.items():
        model.similarities[name] = type(layer)(more.stored(compared), layer.statistics)
    exported = Export(tmp_path / "out")
    context = {name: value for name, value in CONTEXT.items() if name in model.context_fields}
    for history in ([], list(range(1, 60))):
        state = exported.user_state(context, history)
        found = exported.score_items(state, exported.embed_new([given, NewItem()]))
        np.testing.assert_allclose(found[:1], eager(model, context, history, [number]), atol=NOISE, rtol=0)
        # Content that is no field counts by its similarity to the history alone.
        assert not history or abs(found[0] - found[1]) > NOISE
