import pytest
import yaml

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.yaml_files import dump_yaml, load_yaml
from tests.errors import raises_naming


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.e-3", 1e-3),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("010", 10),
        ("yes", "yes"),
        ("3", 3),
        ("1_000", 1000),
        ("'1e-3'", "1e-3"),
        ("e-3", "e-3"),
        ("1e", "1e"),
        ("+", "+"),
        ("1.2.3", "1.2.3"),
        ("-.inf", -float("inf")),
        ("2025-01-01", "2025-01-01"),
        ("2025-02-30", "2025-02-30"),
        ("=", "="),
    ],
)
def test_numbers(tmp_path, text, value):
    (tmp_path / "x.yaml").write_text(f"key: {text}\n")
    read = load_yaml(tmp_path / "x.yaml")["key"]
    assert read == value
    assert type(read) is type(value)


def test_a_merged_mapping_may_be_overridden_wherever_it_stands(tmp_path):
    # The anchor lies deeper than its user, so the merge happens before the anchored mapping is made.
    text = "t: &t {k: 1, m: 2}\nx:\n    inner: &a\n        <<: *t\n        k: 3\ny:\n    <<: *a\n"
    (tmp_path / "x.yaml").write_text(text)
    content = load_yaml(tmp_path / "x.yaml")
    assert content["y"] == content["x"]["inner"] == {"k": 3, "m": 2}


def test_of_several_merged_mappings_the_first_counts(tmp_path):
    (tmp_path / "x.yaml").write_text("a: &a {rate: 1, x: 1}\nb: &b {rate: 2, y: 2}\nc: {<<: [*a, *b], z: 3}\n")
    assert load_yaml(tmp_path / "x.yaml")["c"] == {"rate": 1, "x": 1, "y": 2, "z": 3}


@pytest.mark.parametrize("merged", ["1", "[{a: 1}, 2]", "text"])
def test_what_is_merged_has_to_be_mappings(merged, tmp_path):
    (tmp_path / "x.yaml").write_text(f"x: {{<<: {merged}}}\n")
    with raises_naming(ConfigError, "x.yaml", "line 1"):
        load_yaml(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: [1, 2\nb: 3\n", "line 2, column 2"),
        ("a:\n\tb: 1\n", "line 2, column 1"),
        ("a: {{b}}\n", "line 1, column 5"),
        ("a: !!bool maybe\n", "maybe"),
        ("a: !!int x\n", "'x'"),
        ("a: !!timestamp x\n", ""),
        ("model_config: &a\n    model_config: *a\n", "nested"),
        ("b: &x [1]\na: &y [*x, [*y]]\n", "line 2, column 4"),
        ("a: &x {b: [*x]}\n", "line 1, column 4"),
        ("? &x [*x]\n: 1\n", "line 1, column 3"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1, column 4"),
        ("a: \x01\n", ""),
        ("a:\n    b: 1\n    c: {b: 2}\n    b: {x: 1}\n", "line 4, column 5: not valid YAML: the key 'b'"),
        ("2: {b: 1}\n'2': {b: 2}\n", "line 2, column 1: not valid YAML: the key '2'"),
        ("- a\n", "list"),
    ],
)
def test_broken_yaml(tmp_path, text, place):
    (tmp_path / "x.yaml").write_text(text)
    with raises_naming(ConfigError, "x.yaml", place):
        load_yaml(tmp_path / "x.yaml")


def test_an_alias_may_be_used_twice(tmp_path):
    (tmp_path / "x.yaml").write_text("a: &x [1, [2]]\nb: [*x, *x]\nc: {d: *x}\n")
    assert load_yaml(tmp_path / "x.yaml") == {"a": [1, [2]], "b": [[1, [2]]] * 2, "c": {"d": [1, [2]]}}


def test_a_key_that_is_null_may_be_given_again(tmp_path):
    (tmp_path / "x.yaml").write_text("a: {b: null, c: 1, b: [2]}\n")
    assert load_yaml(tmp_path / "x.yaml") == {"a": {"b": [2], "c": 1}}


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\xfe")
    with raises_naming(ConfigError, "x.yaml"):
        load_yaml(tmp_path / "x.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_yaml(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize(
    "value", ["1e-3", "1.e5", "010", "yes", "1:30", "true", "2025-01-01", "1_0", "~", "é: #", 1e-5, 1e20, -0.0]
)
def test_what_is_written_reads_back(tmp_path, value):
    shared = [value, 1]
    content = {"b": {"x": shared, "y": shared, "z": {"deep": {"k": value}}}, "2024": value, "a": None}
    (tmp_path / "x.yaml").write_text(dump_yaml(content), encoding="utf-8")
    read = load_yaml(tmp_path / "x.yaml")
    assert list(read.items()) == list(content.items())
    assert type(read["2024"]) is type(value)
    assert yaml.safe_load(dump_yaml(content)) == content  # FuxiCTR reads it so
    assert "&" not in dump_yaml(content)
