"""docs/settings.md is what the settings' own descriptions say."""

import runpy

from tests.paths import ROOT


def test_the_page_is_up_to_date():
    found = runpy.run_path(str(ROOT / "docs" / "site_hooks" / "settings_page.py"))
    assert found["PAGE"].read_text(encoding="utf-8") == found["render"](), (
        "docs/settings.md is out of date; run python docs/site_hooks/settings_page.py"
    )
    assert "|  |" not in found["render"]()  # every key is described
