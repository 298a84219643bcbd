"""Tensors are written and read by any number of processes."""

import json

import pytest
import torch

from fuxictr_mm.errors import UserError
from fuxictr_mm.training.tensor_files import TensorFiles, put_tensors, take_tensors
from tests.errors import raises_naming
from tests.torchrun import start


def test_nested_values_come_back_from_json(tmp_path):
    table = torch.arange(6.0).view(3, 2)
    state = {"a": {0: [table, 1.5, None]}, "b": (table.view(3, 2), torch.tensor(True)), "c": {"x": "text", "empty": {}}}
    tensors = {}
    content = json.loads(json.dumps(take_tensors(state, tensors)))
    assert sorted(tensors) == ["a/0/0", "b/1"]  # memory with two names is written once
    found = put_tensors(content, tensors, tmp_path)
    assert found["a"][0][1:] == [1.5, None]
    assert found["c"] == {"x": "text", "empty": {}}
    assert torch.equal(found["b"][0], table)
    assert found["b"][1].item() is True
    for name in tensors:  # a file is missing, of all rows or of some
        for less in ({}, {name: tensors[name][:0]} if tensors[name].dim() else {}):
            with raises_naming(UserError, tmp_path, name):
                put_tensors(content, {k: v for k, v in tensors.items() if k != name} | less, tmp_path)


#: Rows of tensors that are spread over processes; of 4 rows, the last one of three processes has none.
ROWS = {"odd": 1001, "few": 4}

SPREAD = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from fuxictr_mm.training import distributed
from fuxictr_mm.errors import UserError
from fuxictr_mm.training.tensor_files import TensorFiles

folder = Path(sys.argv[1])
with distributed.process_group(-1):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def spread(rows, values):
        block = -(-rows // dist.get_world_size())
        own = values[dist.get_rank() * block :][:block].clone()
        return DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=values.shape, stride=(3, 1)), own

    files = TensorFiles()
    whole = {{name: torch.arange(3.0 * rows).view(rows, 3) for name, rows in {rows}.items()}}
    if not folder.exists():
        tensors = {{name: spread(len(values), values)[0] for name, values in whole.items()}}
        files.save({{**tensors, "same": torch.arange(5)}}, folder, lambda files: None)
    else:
        parts = {{name: spread(len(values), torch.zeros_like(values)) for name, values in whole.items()}}
        found = files.load(folder, {{name: part[0] for name, part in parts.items()}})
        for name, values in whole.items():
            assert torch.equal(parts[name][1], spread(len(values), values)[1]), name
        assert torch.equal(found["same"], torch.arange(5))
"""


@pytest.mark.slow
def test_rows_are_read_by_another_number_of_processes(tmp_path):
    script, folder = tmp_path / "spread.py", tmp_path / "tensors"
    script.write_text(SPREAD.format(rows=ROWS))
    for processes in (3, 2):
        done = start(script, str(folder), processes=processes)
        assert done.returncode == 0, done.stderr
    assert len(list(folder.glob("*.safetensors"))) == 3
    found = TensorFiles().load(folder, {})
    for name, rows in ROWS.items():
        assert torch.equal(found[name], torch.arange(3.0 * rows).view(rows, 3))
    TensorFiles().save(found, tmp_path / "alone", lambda files: None)
    done = start(script, str(tmp_path / "alone"), processes=3)
    assert done.returncode == 0, done.stderr
