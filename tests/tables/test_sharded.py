"""Tables whose rows are spread over processes are trained as in one process."""

import itertools
import json
import os
import shutil
from contextlib import nullcontext
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fuxictr_mm.data.interactions import concatenate
from fuxictr_mm.data.loaders import InMemoryLoader
from fuxictr_mm.data.shards import Shard
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.tables import gathered_state, placement, sharded_parameters, sharded_tables
from fuxictr_mm.tables.layout import Layout, Part, TableShape, by_rows, choose_layouts
from fuxictr_mm.tables.torchrec import check_torchrec
from fuxictr_mm.training import distributed, scoring
from fuxictr_mm.training.replicas import distribute
from fuxictr_mm.training.resume import Progress, TrainingCheckpoint
from tests.errors import check_names, raises_naming
from tests.paths import ROOT
from tests.tensors import assert_equal_tensors, read_tensors
from tests.torchrun import call_on_ranks, start

needs_torchrec = pytest.mark.skipif(
    find_spec("torchrec") is None, reason="pip install --no-deps -r requirements-scale-cpu.txt"
)
#: An item's feature, and one of the context, whose ids repeat in a batch.
SPECS = [{"name": ["item_id", "likes_level"], "table": "sharded"}]
#: The name of the weight of a feature's table.
TABLE = "embedding_layer.embedding_layer.embedding_layers.{}.weight"
SETTINGS = {"feature_specs": SPECS, "embedding_regularizer": 0, "net_dropout": 0.0, "verbose": 0}


def train(settings, folder, shard=None):
    """Return the losses, weights, state of the optimizer and scores of a few steps, the last one of an odd size."""
    shard = shard or distributed.make_shard(12)
    size = 1200 // shard.size
    settings = {**SETTINGS, **settings, "model_root": folder, "batch_size": size}
    experiment = Experiment.load("DIN_MM_tiny", ROOT, **settings)
    dataset = experiment.load_dataset({"train": True, "valid": True}, shard=Shard())
    torch.manual_seed(1)
    model = experiment.build_model(dataset)
    started = {name: value.clone() for name, value in gathered_state(model).items() if distributed.rank() == 0}
    distribute(model)
    rows = dataset.splits["train"]
    rows = concatenate(rows.slice(part.start, part.stop) for part in shard.train_rows(2501))
    model._planned_steps = 6
    losses = []
    for epoch in range(2):
        model.train()
        for batch in InMemoryLoader(rows, size, num_samples=2501, shuffle=True, seed=epoch, shard=shard):
            model._total_steps += 1
            losses.append(distributed.total(float(model.train_step(batch)) * len(batch)))
        # Parts and numbers of batches that differ by rank: of two rows, the third rank has none.
        for count, rows_a_batch in ((777, 100), (2, 1)):
            part = shard.part(count)
            scored = scoring.score(
                model, InMemoryLoader(dataset.splits["valid"].slice(part.start, part.stop), rows_a_batch)
            )
    part = shard.part(777)
    scored = scoring.score(model, InMemoryLoader(dataset.splits["valid"].slice(part.start, part.stop), 100))
    optimizer = model.optimizer.state_dict()["sharded"]["state"]
    if tables := sharded_tables(model):
        optimizer = {i: {"sum": table.gather(table.sums)} for i, table in enumerate(tables) if i in optimizer}
    weights = {name: value.clone() for name, value in gathered_state(model).items() if distributed.rank() == 0}
    found = {"losses": losses, "weights": weights, "optimizer": optimizer, "scores": scored.prediction}
    return {**found, "start": started}


@needs_torchrec
@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "processes", "sharding"),
    [
        *((rule, processes, "row") for rule in ("rowwise_adagrad", "adagrad", "sgd") for processes in (2, 3)),
        ("rowwise_adagrad", 2, "table"),
        ("adagrad", 3, "table"),
        ("adagrad", 2, "column"),
        ("sgd", 3, "column"),  # two of them have columns
    ],
)
def test_several_processes_train_as_one(tmp_path, rule, processes, sharding):
    settings = {
        "feature_specs": [{**SPECS[0], "sharding": sharding}],
        "table_optimizer": rule,
        "lr_schedule": "linear",
        "embedding_learning_rate": 5.0 if rule == "sgd" else 0.05,
    }
    # Adam in the other parameters would make large steps of small gradients, with the sign of their rounding errors.
    settings |= {"optimizer": "sgd", "learning_rate": 0.05}
    expected = train(settings, str(tmp_path), Shard(0, 1, 12))
    (found, *_), _ = call_on_ranks(train, settings, str(tmp_path), folder=tmp_path, processes=processes)
    # The same start, whatever the number of processes and the layout.
    assert_equal_tensors(found["start"], expected["start"])
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-4, atol=1e-5)
    assert found["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, rtol=1e-3, atol=2e-5, msg=name)
    for index, state in expected["optimizer"].items():
        if "sum" in state:
            torch.testing.assert_close(found["optimizer"][index]["sum"], state["sum"], rtol=1e-3, atol=1e-9)
    for result in (expected, found):
        items, levels = (result["start"][TABLE.format(name)] for name in ("item_id", "likes_level"))
        assert float((items[1 : len(levels)] - levels[1:]).abs().min(1).values.max()) > 0  # rows of their own
        assert items[0].abs().max() == result["weights"][TABLE.format("item_id")][0].abs().max() == 0  # padding
        changed = (result["weights"][TABLE.format("item_id")] - items).abs()
        assert float(changed.max()) > 1e-3


@needs_torchrec
@pytest.mark.slow
def test_killed_in_a_step_and_in_a_checkpoint_and_resumed_by_any_number_of_processes(dying):
    folder, run = dying
    path = folder / "model_config.yaml"
    settings = ["eval_steps: 8", "checkpoint_steps: 5", "checkpoint_keep: 2", "net_dropout: 0", "optimizer: sgd"]
    settings += ["learning_rate: 0.05", "table_optimizer: rowwise_adagrad", f"feature_specs: {json.dumps(SPECS)}"]
    replaced = ("optimizer:", "learning_rate:", "net_dropout:")
    kept = (line for line in path.read_text().splitlines() if not line.strip().startswith(replaced))
    text = "\n".join(kept).replace("eval_steps: 8", "\n    ".join(settings))
    path.write_text(text.replace("embedding_regularizer: 1.e-4", "embedding_regularizer: 0"))
    record = folder / "checkpoints" / "tiny_mm" / "DIN_MM_tiny.json"
    weights, checkpoints = record.with_suffix(".model"), record.with_suffix(".snapshot")

    def steps():
        return [int(p.name.removeprefix("step-")) for p in sorted(checkpoints.glob("step-*"))]

    def die(how, processes=2, *flags):
        (folder / "die").write_text(how)
        done = run(*flags, processes=processes)
        assert done.returncode != 0
        assert not (folder / "die").exists(), done.stderr
        return done.stderr

    def finish(processes):
        done = run("--resume", processes=processes)
        assert done.returncode == 0, done.stderr
        found = read_tensors(weights)
        metrics = json.loads(record.read_text())["valid"]
        record.unlink()
        assert not checkpoints.exists()
        assert sorted(record.parent.glob("tmp*")) == []
        return found, metrics

    expected, metrics = finish(2)
    die("kill 22")
    assert steps() == [16, 20]
    shutil.copytree(checkpoints, folder / "kept")
    assert "Resumed at epoch 1, batch 20 of 32" in die("save 22", 2, "--resume")
    assert steps() == [16, 20]
    found, _ = finish(2)
    assert_equal_tensors(found, expected)

    shutil.copytree(folder / "kept", checkpoints)
    assert "512 rows per step, as before" in die("kill 39", 3, "--resume")
    assert steps() == [32, 35]
    found, measured = finish(1)
    assert measured == pytest.approx(metrics, abs=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5, msg=name)


def reshard(folder, background=False):
    """Load the newest checkpoint, or take a step, and write the next; return weights and sums, whole on rank 0."""
    folder = Path(folder)
    kinds = ["column", "table", "row"]
    kinds = kinds[-distributed.size() :] + kinds[: -distributed.size()]  # another layout for every number of processes
    shardings = dict(zip(("item_id", "likes_level", "views_level"), kinds, strict=True))
    specs = [{"name": name, "table": "sharded", "sharding": sharding} for name, sharding in shardings.items()]
    settings = {**SETTINGS, "feature_specs": specs, "table_optimizer": "adagrad", "model_root": str(folder)}
    experiment = Experiment.load("DIN_MM_tiny", ROOT, **settings)
    dataset = experiment.load_dataset({"valid": True})
    model = experiment.build_model(dataset)
    distribute(model)
    checkpoint = TrainingCheckpoint(folder / "checkpoint", "", keep=9, in_background=background)
    progress = checkpoint.load(model)
    if progress is None:
        model.train()
        for batch in InMemoryLoader(dataset.splits["valid"], 200):
            model.train_step(batch)
    checkpoint.save(model, Progress(None, None, step=progress.step + 1 if progress else 1))
    checkpoint.wait()
    sums = {i: part["sum"] for i, part in model.optimizer.state_dict()["sharded"]["state"].items()}
    if tables := sharded_tables(model):
        sums = {i: table.gather(table.sums) for i, table in enumerate(tables)}
    weights = {name: value.clone() for name, value in gathered_state(model).items() if distributed.rank() == 0}
    return weights, {i: value.clone() for i, value in sums.items()}


@needs_torchrec
@pytest.mark.slow
def test_a_checkpoint_of_any_layout_is_read_by_any_number_of_processes(tmp_path):
    found = []
    for processes, background in ((2, True), (3, False)):
        ranks, _ = call_on_ranks(reshard, str(tmp_path), background, folder=tmp_path, processes=processes)
        found.append(ranks[0])
    found.append(reshard(tmp_path))
    for weights, sums in found[1:]:
        assert sums.keys() == found[0][1].keys() == {0, 1, 2}
        assert all(float(value.sum()) > 0 for value in sums.values())
        assert_equal_tensors(sums, found[0][1])
        assert_equal_tensors(weights, found[0][0])


def build(**settings):
    experiment = Experiment.load("DIN_MM_tiny", ROOT, **{**SETTINGS, "table_optimizer": "adagrad", **settings})
    return experiment.build_model(experiment.load_dataset({"valid": True}))


def test_the_start_of_a_table_does_not_change_that_of_other_layers(monkeypatch):
    """Its rows are drawn in blocks by generators of their own, of each table and seed."""
    monkeypatch.setattr(placement, "BLOCK", 100)
    states = []
    for seed, sizes in ((1, {}), (1, {"vocab_size": 3000}), (2, {})):
        torch.manual_seed(seed)
        model = build(feature_specs=[SPECS[0], {"name": "item_id", **sizes}])
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    first, longer, other = (state.pop(TABLE.format("item_id")) for state in states)
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    assert torch.equal(longer[: len(first)], first)
    assert float(first.std()) == pytest.approx(1e-4, rel=0.05)
    everything = [*first[:1000].split(100), *other[:1000].split(100)]
    rows = torch.cat([block[1:11] for block in everything] + [states[0][TABLE.format("likes_level")][1:11]])
    assert len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize(
    ("settings", "fix"),
    [({"embedding_dim": 32, "factor_dim": 17}, "factor_dim: 20"), ({"embedding_dim": 18}, "embedding_dim: 20")],
)
def test_dims_that_fbgemm_does_not_have_are_refused_for_several_processes(monkeypatch, settings, fix):
    monkeypatch.setattr("fuxictr_mm.model.is_spread", lambda: True)
    with raises_naming(ConfigError, "likes_level", fix):
        build(feature_specs=SPECS, **settings)


@pytest.fixture
def spread(monkeypatch):
    """Tables as several processes have them, in a group of this one alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(placement, "is_spread", lambda: True)
    yield
    torch.distributed.destroy_process_group()


@needs_torchrec
@pytest.mark.parametrize("rule", ["adagrad", "sgd"])
def test_a_second_lookup_in_a_step_is_refused_where_it_would_be_a_second_update(tmp_path, spread, rule):
    torch.manual_seed(1)
    experiment = Experiment.load("DIN_MM_tiny", ROOT, **{**SETTINGS, "table_optimizer": rule}, model_root=str(tmp_path))
    dataset = experiment.load_dataset({"valid": True})
    model = experiment.build_model(dataset)
    loader = InMemoryLoader(dataset.splits["valid"].slice(0, 40), 20)
    model.train()
    for batch in loader:  # one lookup in each step
        model.train_step(batch)
    item_table = max(sharded_tables(model), key=lambda table: table.num_embeddings)
    step = model.batch_loss
    model.batch_loss = lambda batch: step(batch) + item_table(batch.target).sum()
    with pytest.raises(ConfigError) if rule == "adagrad" else nullcontext() as raised:
        model.train_step(batch)
    if raised is not None:
        check_names(str(raised.value), "1,001 rows", "table_optimizer", "touched")


@needs_torchrec
def test_a_disk_without_room_for_the_whole_table_ends_in_one_line(tmp_path, spread, monkeypatch):
    specs = [{"name": "item_id", "table": "sharded"}]
    model = build(model_root=str(tmp_path / "weights"), feature_specs=specs)
    assert len(gathered_state(model)[TABLE.format("item_id")]) == 1001

    def full(descriptor, start, size):
        assert size == 4 * 1001 * model.embedding_dim
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with raises_naming(UserError, tmp_path / "weights", "1,001", "No space left on device"):
        gathered_state(model)


def test_one_process_has_whole_tables_and_needs_no_torchrec():
    model = build()
    assert sorted(len(p) for p in sharded_parameters(model)) == [11, 1001]
    assert list(model.optimizer.parts) == ["dense", "sharded"]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"table_optimizer": None}, "table_optimizer"),
        ({"embedding_regularizer": 1e-5}, "embedding_regularizer: 0"),
        ({"embedding_weight_decay": 0.1}, "embedding_weight_decay"),
        ({"ema": 0.9}, "ema"),
        ({"swa_start": 9}, "swa_start"),
        ({"accumulation_steps": 2}, "accumulation_steps"),
        ({"compile": True}, "compile"),
        ({"feature_specs": [{**SPECS[0], "sharding": "column"}], "table_optimizer": "rowwise_adagrad"}, "columns"),
        ({"feature_specs": [{**SPECS[0], "table": "touched", "sharding": "row"}]}, "sharding"),
        ({"feature_specs": [{**SPECS[0], "sharding": "both"}]}, "sharding"),
        ({"feature_specs": [{"name": "views_level", "table": "sharded", "share_embedding": "likes_level"}]}, "shares"),
    ],
)
def test_what_cannot_be_combined_is_refused(settings, key):
    with pytest.raises(ConfigError) as raised:
        build(**settings)
    assert key in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("torch_version", "torchrec", "fbgemm", "named"),
    [
        ("2.13.0+cpu", None, None, "requirements-scale-cpu.txt"),
        ("2.13.0+cpu", "1.8.0", None, "torchrec~=1.8.0"),
        ("2.13.0+cpu", "1.8.0", "1.7.0", "fbgemm-gpu-cpu~=1.8.0"),
        ("2.13.0+cpu", "1.9.2", "1.9.0", "fbgemm-gpu-cpu~=1.8.0"),
        ("2.14.1+cu130", "1.8.0", "1.8.0", "fbgemm-gpu-cpu~=1.9.0"),
        ("2.99.0", "1.9.2", "1.9.0", "torch==2.13.0"),
    ],
)
def test_packages_that_do_not_fit_torch_are_named(torch_version, torchrec, fbgemm, named, monkeypatch):
    versions = {"torchrec": torchrec, "fbgemm-gpu-cpu": fbgemm}

    def version(name):
        if versions.get(name) is None:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(torch, "__version__", torch_version)
    with raises_naming(UserError, "table", named):
        check_torchrec()


def shapes(**sharding):
    return {name: TableShape(rows, 16, sharding[name]) for name, rows in (("a", 5000), ("b", 3000)) if name in sharding}


@needs_torchrec
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_layouts_cover_every_table_once(processes):
    for rule, kinds in (("adagrad", ("row", "table", "column", "auto")), ("rowwise_adagrad", ("row", "table", "auto"))):
        for first, second in itertools.product(kinds, repeat=2):
            tables = shapes(a=first, b=second)
            for name, layout in choose_layouts(tables, rule, processes, "cpu", 1e9).items():
                covered = torch.zeros(tables[name].rows, 16)
                for part in layout.parts:
                    covered[part.row : part.row + part.rows, part.column : part.column + part.columns] += 1
                assert bool((covered == 1).all())
                ranks = [part.rank for part in layout.parts]
                assert ranks == sorted(set(ranks))
                assert layout.kind == tables[name].sharding or tables[name].sharding == "auto"
                assert rule == "adagrad" or layout.kind != "column"


@needs_torchrec
def test_auto_spreads_what_does_not_fit_into_one_process():
    assert choose_layouts(shapes(a="auto"), "adagrad", 2, "cpu", 500e3)["a"].kind != "table"
    with pytest.raises(ConfigError) as raised:
        choose_layouts(shapes(a="auto", b="table"), "adagrad", 2, "cpu", 100e3)
    assert "\n" not in str(raised.value)


def test_bytes_sent_are_those_of_ids_rows_and_gradients():
    rows = by_rows(1000, 16, 4)
    assert rows.bytes_sent(0, 4) == pytest.approx(3 / 4 * (8 + 2 * 4 * 16))
    whole = Layout("table", (Part(1, 0, 0, 1000, 16),))
    assert whole.bytes_sent(0, 4) == 8 + 4 * 16  # ids and gradients
    assert whole.bytes_sent(1, 4) == 3 * 4 * 16  # rows, to each of the others


LIMITED = """
import resource
from fuxictr_mm.experiment import Experiment

status = dict(line.split(":") for line in open("/proc/self/status"))
imported = int(status["VmData"].split()[0]) * 2**10  # 220 MB with a CPU build of torch, 770 MB with one for CUDA
resource.setrlimit(resource.RLIMIT_DATA, (imported + {megabytes} * 2**20,) * 2)  # as ulimit -d
Experiment.load("DIN_MM_tiny", {root!r}, **{settings!r}).fit()
"""


@needs_torchrec
@pytest.mark.slow
def test_a_table_that_one_process_may_not_allocate_trains_on_two(tmp_path):
    rows, dim = 6_000_000, 64  # 1,536 MB; without the table, a process maps 1,320 MB after its imports
    feature = {"name": "likes_level", "table": "sharded", "vocab_size": rows}
    settings = {**SETTINGS, "feature_specs": [feature], "embedding_dim": dim, "table_optimizer": "rowwise_adagrad"}
    settings |= {"epochs": 1, "batch_size": 2048, "record": False, "keep_memory": False, "model_root": str(tmp_path)}
    script = tmp_path / "limited.py"
    script.write_text(LIMITED.format(megabytes=2430, root=str(ROOT), settings=settings))
    alone = start(script, processes=1)
    assert alone.returncode != 0
    assert "alloc" in alone.stderr
    together = start(script, processes=2)  # with a checkpoint and the weights written, and read at the end
    assert together.returncode == 0, together.stderr
    weights = torch.load(tmp_path / "tiny_mm" / "DIN_MM_tiny.model", weights_only=True, mmap=True)
    assert {tuple(value.shape) for value in weights.values() if value.dim() == 2} >= {(rows, dim)}
    assert not (tmp_path / "tiny_mm" / "DIN_MM_tiny.snapshot").exists()
