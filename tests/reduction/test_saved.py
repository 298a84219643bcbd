import numpy as np
import pytest

from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from fuxictr_mm.reduction.saved import SavedFormat, check_modalities
from tests.errors import raises_naming


def test_a_saved_fit_is_read_back_or_refused(tmp_path):
    saved, path = SavedFormat("thing", "make"), tmp_path / "a.safetensors"
    arrays = {"x": np.arange(6.0).reshape(2, 3).T, "y": np.array([1, 2])}
    saved.save(path, {"name": "it"}, arrays)
    content, found = saved.load(path, lambda *parts: parts)
    assert content["name"] == "it"
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    data = path.read_bytes()
    for other, message in ((SavedFormat("other", "make"), "other"), (SavedFormat("thing", "make", 2), " 1,")):
        with pytest.raises(DataError, match=message):
            other.load(path, lambda *parts: parts)
    with raises_naming(MissingFileError, "aa.safetensors", "'a.safetensors'"):
        saved.load(tmp_path / "aa.safetensors", lambda *parts: parts)
    with raises_naming(DataError, "no such key"):
        saved.load(path, lambda content, arrays: content["no such key"])
    for broken in (b"", data[:100], data[:-8], data[:-3] + b"xyz", data.replace(b"it", b"at"), b"x" * 200):
        path.write_bytes(broken)
        with raises_naming(DataError, "a.safetensors") as caught:
            saved.load(path, lambda *parts: parts)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"txt": 3, "image": 2}, "'txt'.*'text'"),
        ({"text": 3}, "'image'.*emb"),
        ({"text": 5, "image": 2}, "'text' .*5.*3"),
    ],
)
def test_modalities_of_another_fit_are_named(given, value):
    columns = {"text": "txt", "image": "emb"}
    with pytest.raises(ConfigError, match=f"it: .*{value}"):
        check_modalities(given, {"text": 3, "image": 2}, "it", columns)
    check_modalities({"image": 2, "text": 3}, {"text": 3, "image": 2}, "it")
