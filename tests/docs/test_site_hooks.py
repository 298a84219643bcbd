"""What the API pages show."""

import pytest

from tests.paths import ROOT

MODULE = """
class Settings:
    #: Of a batch,
    #: at most.
    rows: int
    size: int = 1  #: In bytes.
    name: str = "x"
"""


def test_comments_of_fields_are_their_docstrings(tmp_path):
    griffe = pytest.importorskip("griffe")
    (tmp_path / "documented.py").write_text(MODULE)
    extensions = griffe.load_extensions(str(ROOT / "docs/site_hooks/fields.py"))
    module = griffe.load("documented", search_paths=[tmp_path], extensions=extensions)
    found = {name: field.docstring and field.docstring.value for name, field in module["Settings"].attributes.items()}
    assert found == {"rows": "Of a batch, at most.", "size": "In bytes.", "name": None}
