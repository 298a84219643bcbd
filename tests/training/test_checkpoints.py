"""Weights on disk: atomic writes, reads that do not execute code, and checks before loading."""

import errno
import os
import pickle
import resource
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from fuxictr_mm.errors import MissingFileError, UserError
from fuxictr_mm.training import checkpoints
from fuxictr_mm.training.checkpoints import load_state_dict, save_state_dict, write_beside
from tests.errors import check_names, raises_naming
from tests.tensors import assert_equal_tensors, read_tensors


def refused(model, path):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_state_dict(model, path)
    assert_equal_tensors(before, model.state_dict())
    check_names(str(caught.value), path)
    return str(caught.value)


def test_round_trip(tmp_path):
    model, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    model(torch.randn(4, 3))
    save_state_dict(model.state_dict(), tmp_path / "new/folder/a.model")
    load_state_dict(other, tmp_path / "new/folder/a.model")
    assert_equal_tensors(model.state_dict(), other.state_dict())
    assert os.listdir(tmp_path / "new/folder") == ["a.model"]
    nn.BatchNorm1d(3).load_state_dict(read_tensors(tmp_path / "new/folder/a.model"))


class Lightning(nn.Module):
    """What a Lightning module's state dict looks like."""

    def __init__(self, model):
        super().__init__()
        self.model = model


def saved_by_lightning(model):
    return {"epoch": 3, "state_dict": Lightning(model).state_dict(), "optimizer_states": [{"lr": 1.0}], "callbacks": {}}


@pytest.mark.parametrize(
    "content",
    [
        lambda model: nn.DataParallel(model).state_dict(),
        lambda model: torch.compile(model).state_dict(),
        lambda model: torch.compile(nn.DataParallel(model)).state_dict(),
        lambda model: torch.optim.swa_utils.AveragedModel(model).state_dict(),
        lambda model: torch.optim.swa_utils.AveragedModel(torch.compile(model)).state_dict(),
        lambda model: {"module": model.state_dict(), "global_steps": 3},  # DeepSpeed
        lambda model: {f"_fsdp_wrapped_module.{name}": value for name, value in model.state_dict().items()},
        lambda model: {"model": model.state_dict(), "optimizer": torch.optim.Adam(model.parameters()).state_dict()},
        lambda model: {"epoch": 1, "model_state_dict": nn.DataParallel(model).state_dict(), "loss": torch.zeros(())},
        saved_by_lightning,
    ],
)
def test_what_wrappers_and_training_loops_add_is_left_out(tmp_path, content, caplog):
    caplog.set_level("INFO")
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    torch.save(content(model), tmp_path / "a.pth")
    load_state_dict(other, tmp_path / "a.pth")
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other.bias, model.bias)
    assert "a.pth" in caplog.text


def test_what_wrappers_of_layers_add_is_left_out(tmp_path):
    model, other = Lightning(nn.Linear(2, 1)), Lightning(nn.Linear(2, 1))
    model.model = torch.compile(model.model)
    assert "model._orig_mod.weight" in model.state_dict()
    torch.save(nn.DataParallel(model).state_dict(), tmp_path / "a.pth")
    load_state_dict(other, tmp_path / "a.pth")
    assert torch.equal(other.model.weight, model.model._orig_mod.weight)


def test_names_that_the_model_has_itself_are_kept(tmp_path):
    model, other = Lightning(nn.Linear(2, 1)), Lightning(nn.Linear(2, 1))
    torch.save(nn.DataParallel(model).state_dict(), tmp_path / "a.pth")
    load_state_dict(other, tmp_path / "a.pth")
    assert torch.equal(other.model.weight, model.model.weight)


def test_a_dict_without_weights_names_its_keys(tmp_path):
    torch.save({"net": {"weight": torch.zeros(2, 2)}, "epoch": 3}, tmp_path / "a.pth")
    check_names(refused(nn.Linear(2, 2), tmp_path / "a.pth"), "net, epoch", "model_state_dict")


def test_what_differs_is_named(tmp_path):
    path = tmp_path / "a.model"
    torch.save({"weight": torch.zeros(3, 2), "old": torch.zeros(1), 7: torch.zeros(1)}, path)
    check_names(refused(nn.Linear(2, 2), path), "bias", "old, 7", "weight (3, 2)", "(2, 2)")
    torch.save({f"w{i}": torch.zeros(1) for i in range(9)}, path)
    check_names(refused(nn.Linear(2, 2), path), "w0, w1, w2, w3, w4", "4 more")


@pytest.mark.parametrize("content", [[1, 2], {"weight": 3}, torch.zeros(2), {"model": {"weight": torch.zeros(1)}}])
def test_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "a.model")
    refused(nn.Linear(2, 2), tmp_path / "a.model")


class Runs:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_code_in_a_file_does_not_run(tmp_path, write):
    write({"weight": torch.zeros(2, 2), "bias": Runs(f"touch {tmp_path / 'ran'}")}, tmp_path / "a.model")
    refused(nn.Linear(2, 2), tmp_path / "a.model")
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=80, deadline=None)
@given(data=st.data(), form=st.sampled_from(["zip", "pickle", "safetensors"]))
def test_a_damaged_file_is_one_line(tmp_path_factory, data, form):
    path = tmp_path_factory.mktemp("damaged") / ("a.safetensors" if form == "safetensors" else "a.model")
    if form == "safetensors":
        save_file(nn.Linear(2, 2).state_dict(), path)
    else:
        torch.save(nn.Linear(2, 2).state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    content = bytearray(path.read_bytes())
    # The size of a file with pickled addresses varies, and what is drawn must not depend on it.
    for place in data.draw(st.lists(st.integers(0, 300), max_size=8)):
        content[place % len(content)] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: len(content) * data.draw(st.integers(0, 500)) // 500])
    try:
        load_state_dict(nn.Linear(2, 2), path)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_safetensors_are_read(tmp_path):
    model, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    model(torch.randn(4, 3))
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    load_state_dict(other, tmp_path / "a.safetensors")
    assert_equal_tensors(model.state_dict(), other.state_dict())
    save_file({"weight": torch.zeros(3)}, tmp_path / "b.safetensors")
    check_names(refused(model, tmp_path / "b.safetensors"), "bias, running_mean")


def test_a_pickle_named_safetensors_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.safetensors")
    refused(nn.Linear(2, 2), tmp_path / "a.safetensors")


def model_with(settings, dim=2):
    model = nn.Linear(2, dim)
    model.settings = settings
    return model


def test_settings_that_differ_from_those_of_the_weights_are_named(tmp_path):
    run = tmp_path / "X" / "20260102-030405-seed1"
    run.mkdir(parents=True)
    torch.save(nn.Linear(2, 3).state_dict(), run / "best.model")
    columns = "[{name: a, vocab_size: 5}, {name: [b, c], pretrain_dim: 8}]"
    (run / "config.yaml").write_text(f"{{model_id: X, hidden: [3], epochs: 1, gpu: 0, feature_cols: {columns}}}")
    columns = [{"name": "a", "vocab_size": 6}, {"name": "c", "pretrain_dim": 8}]
    model = model_with({"model_id": "Y", "hidden": [2], "epochs": 1, "gpu": -1, "feature_cols": columns})
    os.link(run / "best.model", tmp_path / "X.model")
    for path in (run / "best.model", tmp_path / "X.model"):
        message = refused(model, path)
        check_names(message, "weight (3, 2)", "(2, 2)", "hidden is [3]", "[2]", "feature_cols.a.vocab_size is 5")
        check_names(message, "feature_cols.b is", "8}", "not set here")
        for name in ("epochs", "gpu", "model_id", "feature_cols.c"):
            assert f"{name} is" not in message


def test_where_no_setting_differs_that_is_said(tmp_path):
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "best.model")
    (tmp_path / "config.yaml").write_text("{epochs: 1}")
    assert "no setting differs from" in refused(model_with({"epochs": 1}), tmp_path / "best.model")
    (tmp_path / "config.yaml").write_text("{epochs: [")
    assert "no setting" not in refused(model_with({"epochs": 1}), tmp_path / "best.model")


def test_a_missing_file(tmp_path):
    for name in ("DIN_tiny.model", "DIN_MM_tiny.model"):
        (tmp_path / name).touch()
    with raises_naming(MissingFileError, tmp_path / "DIN_tny.model", "'DIN_tiny.model'", "DIN_MM_tiny.model"):
        load_state_dict(nn.Linear(1, 1), tmp_path / "DIN_tny.model")
    with raises_naming(MissingFileError, "nowhere/X.model"):
        load_state_dict(nn.Linear(1, 1), tmp_path / "nowhere/X.model")


def fail_midway(error):
    def save(state, stream):
        stream.write(b"half")
        raise error

    return save


FULL = OSError(errno.ENOSPC, "No space left on device")
OF_TORCH = "PytorchStreamWriter failed writing file"


@pytest.mark.parametrize(
    ("where", "error", "reason"),
    [
        *((where, FULL, "No space left on device") for where in ("save", "fsync", "replace")),
        *((where, OSError(), "OSError") for where in ("save", "fsync", "replace")),
        (
            "save",
            RuntimeError("PytorchStreamWriter failed writing file\nmore"),
            "PytorchStreamWriter failed writing file",
        ),
    ],
)
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, error, reason, where):
    path = tmp_path / "a.model"
    save_state_dict(nn.Linear(2, 2).state_dict(), path)
    old = path.read_bytes()

    def fail(*_):
        raise error

    if where == "save":
        monkeypatch.setattr(torch, "save", fail_midway(error))
    else:
        monkeypatch.setattr(checkpoints.os, where, fail)
    with raises_naming(UserError, path, f"({reason})"):
        save_state_dict(nn.Linear(2, 2).state_dict(), path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["a.model"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, TypeError])
def test_any_other_end_leaves_nothing_behind_either(tmp_path, monkeypatch, error):
    monkeypatch.setattr(torch, "save", fail_midway(error))
    with pytest.raises(error):
        save_state_dict({}, tmp_path / "a.model")
    assert os.listdir(tmp_path) == []


FULL_DISK = """
import resource, signal, sys, torch
from fuxictr_mm.errors import UserError
from fuxictr_mm.training.checkpoints import save_state_dict
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_state_dict({"w": torch.zeros(100_000)}, sys.argv[1])
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file sizes")
def test_a_disk_that_fills_up(tmp_path):
    path = tmp_path / "a.model"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "could not be written" in done.stdout
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.model"]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with raises_naming(UserError, tmp_path / "file/a.model"):
        write_beside(tmp_path / "file/a.model", lambda stream: stream.write(b"x"))
    (tmp_path / "a.model").mkdir()
    with raises_naming(UserError, tmp_path / "a.model"):
        write_beside(tmp_path / "a.model", lambda stream: stream.write(b"x"))
