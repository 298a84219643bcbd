import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.embeddings.texts import ItemTexts, default_template, parse_template
from fuxictr_mm.errors import ConfigError, DataError
from tests.errors import raises_naming


@pytest.fixture
def write(tmp_path):
    def make(**columns) -> str:
        pq.write_table(pa.table(columns), tmp_path / "texts.parquet", row_group_size=2)
        return str(tmp_path / "texts.parquet")

    return make


def test_chunks_of_texts_do_not_depend_on_row_groups(write):
    texts = ItemTexts(write(item_id=[5, 0, 3, 9, 8], title=["five", "padding", None, "  ", "eight"]), "{title}")
    assert texts.ids.tolist() == [5, 3, 9, 8]
    assert list(texts.chunks(3)) == [["five", None, None], ["eight"]]
    assert list(texts.chunks(2)) == [["five", None], [None, "eight"]]


def test_columns_are_joined_by_a_template(write):
    path = write(
        item_id=[1, 2, 3],
        title=["Heat", "", None],
        tags=[["a", None, "b"], ["c"], None],
        year=pa.array([1995, None, None]),
        score=[7.0, float("nan"), None],
        half=[0.5, 2.5, None],
        none=pa.nulls(3),
    )
    texts = next(ItemTexts(path, "{title} ({year}): {tags}{none}").chunks(9))
    assert texts == ["Heat (1995): a, b", "(): c", None]
    assert next(ItemTexts(path, "{score}").chunks(9)) == ["7", None, None]
    assert next(ItemTexts(path, "{half}").chunks(9)) == ["0.5", "2.5", None]


def test_the_digest_is_of_ids_texts_and_their_borders(write):
    digests = [
        ItemTexts(write(item_id=ids, title=titles), "{title}").digest
        for ids, titles in (([1, 2], ["ab", "c"]), ([1, 2], ["a", "bc"]), ([1, 3], ["ab", "c"]), ([1, 2], ["ab", None]))
    ]
    assert len(set(digests)) == 4


@pytest.mark.parametrize("template", ["plain", "{}", "{0.x}", "{a!r}", "{a:>5}", "{a[0]}", "{", "a}"])
def test_templates_are_names_in_braces_only(write, template):
    error, named = (DataError, "0.x") if template == "{0.x}" else (ConfigError, f"template '{template}'")
    with raises_naming(error, named):
        ItemTexts(write(item_id=[1], a=["x"]), template)


def test_the_template_of_a_title_is_the_default(write):
    assert default_template(write(item_id=[1], title=["a"])) == "{title}"
    assert default_template(write(item_id=[1], title=["a"], item_title=["b"])) == "{item_title}"
    with raises_naming(DataError, "texts.parquet", "item_title", "--template"):
        default_template(write(item_id=[1], name=["a"]))


def test_braces_may_be_doubled():
    assert parse_template("{{a}} {b}") == [("{", None), ("a}", None), (" ", "b")]


@pytest.mark.parametrize(
    ("columns", "value"),
    [
        ({"item_id": [1, 1], "title": ["a", "b"]}, "item_id 1 "),
        ({"item_id": [-1], "title": ["a"]}, "id -1"),
        ({"item_id": [0], "title": [""]}, "no items"),
        ({"item_id": [1], "title": [[0.5]]}, "title: holds list"),
        ({"item_id": [1], "title": [b"x"]}, "title: holds binary"),
        ({"item_id": [1], "titel": ["a"]}, "'title'; did you mean 'titel'"),
    ],
)
def test_files_that_hold_no_texts_are_refused(write, columns, value):
    with pytest.raises(DataError, match=value):
        ItemTexts(write(**columns), "{title}")


@pytest.mark.parametrize("content", ["item_id,titel\n1,a\n", "", "item_id,title\n1,a,b\n", "item_id,title\n1,\xff\n"])
@pytest.mark.parametrize("name", ["items.csv", "items.jsonl"])
def test_text_files_that_hold_no_texts_are_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1"))
    with raises_naming(DataError, path):
        ItemTexts(path, "{title}")
