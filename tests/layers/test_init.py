import inspect
import subprocess
import sys

import pytest
from fuxictr.pytorch import layers as fuxictr_layers
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from torch import nn

import fuxictr_mm
from fuxictr_mm import layers
from fuxictr_mm.layers import register


def run(*lines: str) -> str:
    """Output of a fresh interpreter: what this one has imported already does not count."""
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light():
    heavy = "{'torch', 'fuxictr', 'numpy', 'pyarrow', 'fuxictr_mm.layers'}"
    assert run("import sys, fuxictr_mm", f"print(sorted({heavy} & set(sys.modules)), fuxictr_mm.__version__)") == (
        f"[] {fuxictr_mm.__version__}"
    )


CHECK = (
    "import fuxictr.pytorch.layers, fuxictr_mm.layers",
    "assert fuxictr.pytorch.layers.DINAttention is fuxictr_mm.layers.DINAttention",
    "assert fuxictr.pytorch.layers.SENet is fuxictr_mm.layers.SENet",
    "print('registered')",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import fuxictr_mm; fuxictr_mm.register(); from fuxictr.pytorch import layers; layers.DINAttention",
        "from fuxictr.pytorch import layers; import fuxictr_mm; fuxictr_mm.register(); layers.DINAttention",
        "from fuxictr.pytorch import layers; import fuxictr_mm.layers; layers.DINAttention",
    ],
)
def test_registered_in_any_order(imports):
    assert run(imports, *CHECK) == "registered"


def test_names_that_fuxictr_has_are_left_alone():
    before = {name: getattr(fuxictr_layers, name) for name in vars(layers) if hasattr(fuxictr_layers, name)}
    register()
    register()
    assert {name: getattr(fuxictr_layers, name) for name in before} == before
    ours = {name for name, c in vars(layers).items() if inspect.isclass(c) and issubclass(c, nn.Module)}
    kept = {"MultiHeadTargetAttention", "BilinearInteraction", "CrossNetMix"}
    assert kept < ours
    assert {name for name in ours if getattr(fuxictr_layers, name, None) is getattr(layers, name)} == ours - kept
    for name in kept:
        assert getattr(fuxictr_layers, name).__module__.startswith("fuxictr.")
    assert not hasattr(fuxictr_layers, "register")
    assert not hasattr(fuxictr_layers, "Jagged")


@pytest.mark.parametrize("encoder", ["layers.DINAttention(8)", ["layers.SENet(4)", "layers.SENet(num_fields=4)"]])
def test_usable_as_feature_encoder(encoder):
    built = FeatureEmbeddingDict.get_feature_encoder(None, encoder)
    assert isinstance(built[0] if isinstance(encoder, list) else built, layers.SENet | layers.DINAttention)


def test_a_type_checker_lets_model_files_import_every_layer():
    ours = [
        name for name, layer in vars(layers).items() if getattr(layer, "__module__", "").startswith(layers.__name__)
    ]
    assert set(ours) <= set(layers.__all__)
