"""On a GPU every model, the training loop and the commands do what they do on the CPU, up to rounding."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import fuxictr_mm as fm
from fuxictr_mm.experiment import Experiment
from tests.paths import ROOT

NAMES = sorted(path.stem for path in (ROOT / "model_zoo").glob("*.py"))
#: DIN_MM's other layers.
SWITCHES = {
    "DIN_MM-din": {"interest": "din", "din_use_softmax": True, "cross": "mix", "bilinear": "field_all"},
    "DIN_MM-sparse": {"sparse_attention": True, "cross": "v1", "bilinear": "field_each"},
    "DIN_MM-mean": {"interest": "mean", "cross": "v2", "bilinear": "field_interaction"},
    # On the CPU without effect.
    "DIN_MM-fused": {"fused_attention": True},
    "DIN_MM-fused_sparse": {"fused_attention": True, "sparse_attention": True, "num_heads": 1},
    "DIN-fused": {"fused_attention": True, "attention_dropout": 0.2},
}

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def model_and_batches(expid, gpu, root, rows=64, **settings):
    """Return a model with the weights that its seed gives on the CPU, and three batches, on a device."""
    experiment = Experiment.load(expid, ROOT, gpu=gpu, model_root=str(root), verbose=0, batch_size=rows, **settings)
    dataset = experiment.load_dataset({"train": True})
    torch.manual_seed(1)
    model = experiment.build_model(dataset)
    loader = experiment.make_loader(dataset.splits["train"], model, shuffle=True, training=True)
    return model, [batch for batch, _ in zip(loader, range(3), strict=False)]


def relative(found, expected):
    return float((found.cpu() - expected).norm() / expected.norm().clamp(min=1e-12))


@pytest.mark.parametrize("case", [*NAMES, *SWITCHES])
def test_the_same_predictions_and_gradients(tmp_path, case):
    settings = SWITCHES.get(case, {})
    expid = f"{case.split('-')[0]}_tiny"
    here, batches = model_and_batches(expid, -1, tmp_path, **settings)
    there, batches_there = model_and_batches(expid, 0, tmp_path, **settings)
    there.load_state_dict(here.state_dict())
    assert {p.device.type for p in there.parameters()} == {"cuda"}
    for one, other in zip(batches, batches_there, strict=True):
        found = []
        for model, batch in ((here, one), (there, other)):
            model.eval()  # no dropout, whose random numbers differ
            model.zero_grad()
            with torch.backends.cudnn.flags(enabled=False):  # its recurrent layers have no backward in eval mode
                returned = model(batch)
                model.add_loss(returned, model.get_labels(batch)).backward()
            found.append(returned["y_pred"].detach())
        assert relative(found[1], found[0]) < 1e-4
        grads = {n: p.grad for n, p in here.named_parameters() if p.grad is not None}
        total = torch.sqrt(sum(g.square().sum() for g in grads.values()))
        for name, parameter in there.named_parameters():
            if name in grads:
                difference = float((parameter.grad.cpu() - grads[name]).norm())
                assert difference < 1e-3 * float(grads[name].norm()) + 1e-5 * float(total), name


def test_fused_attention_reaches_the_layers(tmp_path):
    for expid in ("DIN_tiny", "DIN_MM_tiny"):
        model, _ = model_and_batches(expid, 0, tmp_path, fused_attention=True)
        assert any(getattr(module, "uses_kernels", False) for module in model.modules())


@pytest.mark.parametrize("case", [*NAMES, *SWITCHES])
def test_bf16_predicts_nearly_the_same_and_trains(tmp_path, case):
    settings = SWITCHES.get(case, {})
    model, batches = model_and_batches(f"{case.split('-')[0]}_tiny", 0, tmp_path, **settings)
    model.eval()
    with torch.no_grad():
        exact = model(batches[0])["y_pred"].cpu()
        model.precision = "bf16"
        assert relative(model(batches[0])["y_pred"], exact) < 5e-2
    model.train()
    for batch in batches:
        assert model.train_step(batch).isfinite()


@pytest.mark.parametrize("case", [*NAMES, *SWITCHES])
def test_the_same_training_without_dropout(tmp_path, case):
    """Three whole steps, regularizers, clipping and the fused optimizer included."""
    expid, before, found = f"{case.split('-')[0]}_tiny", {}, []
    for gpu in (-1, 0):
        model, batches = model_and_batches(expid, gpu, tmp_path, optimizer="sgd", **SWITCHES.get(case, {}))
        before = before or {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(before)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        for batch in batches:
            model.train_step(batch)
        found.append({k: v.cpu() for k, v in model.state_dict().items()})
    here, there = found
    moved = {n: float((v - before[n]).norm()) for n, v in here.items() if v.is_floating_point()}
    for name, distance in moved.items():  # what batch norm cancels moves by rounding alone
        assert float((there[name] - here[name]).norm()) < 0.02 * distance + 1e-4 * max(moved.values()), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of DIN_MM_tiny: on the CPU, on the GPU, on the GPU streamed and in bf16."""
    runs = {}
    for name, gpu, settings in (
        ("cpu", -1, {}),
        ("gpu", 0, {}),
        ("streamed", 0, {"resident": False, "buffer_rows": 4000}),
        ("bf16", 0, {"precision": "bf16"}),
        ("tf32", 0, {"precision": "tf32", "ema": 0.9, "lr_schedule": "cosine", "warmup_steps": 5}),
        ("compiled", 0, {"compile": True}),
    ):
        root = str(tmp_path_factory.mktemp(name))
        runs[name] = Experiment.load("DIN_MM_tiny", ROOT, gpu=gpu, model_root=root, verbose=0, **settings).fit()
    return runs


@pytest.mark.parametrize("name", ["gpu", "streamed", "bf16", "tf32", "compiled"])
def test_a_run_is_as_good_as_on_the_cpu(trained, name):
    assert abs(trained[name].valid["AUC"] - trained["cpu"].valid["AUC"]) < 0.02
    environment = json.loads((trained[name].path / "environment.json").read_text())
    assert environment["device"] == torch.cuda.get_device_name(0)


def test_weights_move_between_devices(trained):
    for name in ("cpu", "gpu"):
        run = fm.load_run(trained[name].path)
        np.testing.assert_allclose(run.predict(gpu=0), run.predict(gpu=-1), atol=1e-5)


def test_a_killed_run_resumes(tmp_path):
    """The order of sums on a GPU is not fixed, so the resumed run ends near the other, not bit for bit at it."""
    experiment = Experiment.load("DIN_MM_tiny", ROOT, gpu=0, model_root=str(tmp_path), verbose=0, epochs=2)
    whole = experiment.fit()
    from fuxictr_mm.training import loop, resume

    dataset = experiment.load_dataset({"train": True, "valid": True})

    def parts():
        torch.manual_seed(experiment.config.seed)
        model = experiment.build_model(dataset)
        train = experiment.make_loader(dataset.splits["train"], model, shuffle=True, training=True)
        valid = experiment.make_loader(dataset.splits["valid"], model)
        return model, train, valid, resume.TrainingCheckpoint(tmp_path / "snapshot", "hash", every_seconds=0)

    model, train, valid, checkpoint = parts()
    inner = model.train_step

    def train_step(batch):
        if model._total_steps == len(train) + 3:
            raise KeyboardInterrupt
        return inner(batch)

    model.train_step = train_step
    with pytest.raises(KeyboardInterrupt):
        loop.fit(model, train, 2, valid, checkpoint=checkpoint)
    model, train, valid, checkpoint = parts()
    history = loop.fit(model, train, 2, valid, checkpoint=checkpoint, resume=True)
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert abs(history[-1]["AUC"] - whole.valid["AUC"]) < 0.02


def script(*arguments, cwd=ROOT, launcher=()):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    command = [sys.executable, *launcher, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_commands(tmp_path, trained):
    for command in (
        [ROOT / "run_expid.py", "--config", ROOT, "--expid", "DIN_tiny", "--gpu", 0],
        [ROOT / "prediction.py", "--config", ROOT, "--expid", "DIN_tiny", "--gpu", 0],
        ["-m", "fuxictr_mm", "diagnose", "--config", ROOT, "--expid", "DIN_tiny", "--gpu", 0, "--quiet"],
        ["-m", "fuxictr_mm", "influence", "--config", ROOT, "--expid", "DIN_tiny", "--gpu", 0],
    ):
        (tmp_path / "data").exists() or (tmp_path / "data").symlink_to(ROOT / "data")
        done = script(*command, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr[-2000:])


def test_torchrun_with_nccl(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", "localhost:0"]
    (tmp_path / "data").symlink_to(ROOT / "data")
    arguments = [ROOT / "run_expid.py", "--config", ROOT, "--expid", "DIN_MM_tiny", "--gpu", "0"]
    done = script(*arguments, cwd=tmp_path, launcher=launcher)
    assert done.returncode == 0, done.stderr[-2000:]


def test_too_large_a_batch_ends_in_the_memory_error_of_torch(tmp_path):
    """Not in advice about the batch format."""
    model, batches = model_and_batches("DIN_MM_tiny", 0, tmp_path)
    model.logits = lambda batch: torch.empty(2**45, device="cuda")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        model(batches[0])
