"""TorchRec and fbgemm: whether they are installed, and their table with an update in the backward pass."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from fuxictr_mm.errors import UserError

if TYPE_CHECKING:
    from fuxictr_mm.tables.layout import Layout, TableShape

#: Torch, and the TorchRec and fbgemm whose libraries are built for it. Each pair was tested.
RELEASES = {"2.13": "1.8", "2.14": "1.9"}


def check_torchrec() -> None:
    """Check that TorchRec and fbgemm are installed, in the versions for this torch.

    Raises
    ------
    UserError
        They are not; the error has the command that installs them.
    """
    versions = {}
    for name in ("torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    there = ", ".join(f"{name} {version}" for name, version in versions.items()) or "neither"
    release = RELEASES.get(_release(torch.__version__))
    if release is None:
        raise UserError(
            f"table: sharded needs torch {' or '.join(RELEASES)}, for which there are tested versions of torchrec and "
            f"fbgemm, found torch {torch.__version__}; python -m pip install torch==2.13.0"
        )
    install = (
        "python -m pip install --no-deps -r requirements-scale-cpu.txt; python -m pip install --no-deps "
        f"torchrec~={release}.0 fbgemm-gpu-cpu~={release}.0 (GPUs: torchrec~={release}.0 fbgemm-gpu~={release}.0 alone)"
    )
    found = f"table: sharded with torch {torch.__version__} needs torchrec and fbgemm {release}"
    if len(versions) < 2 or "torchrec" not in versions or {_release(v) for v in versions.values()} != {release}:
        raise UserError(f"{found}, found {there}; {install}")
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # a deprecation in TorchRec
    try:
        import torchrec  # noqa: F401
    except Exception as error:  # of a dynamic library that does not fit torch
        reason = " ".join(str(error).split())
        raise UserError(f"{found}, and the import of {there} fails ({reason}); {install}") from error


def _release(version: str) -> str:
    """Return major and minor of a version, which fbgemm follows torch in."""
    return ".".join(version.split(".")[:2])


def make_collection(name: str, rows: int, dim: int, group: Mapping[str, Any]) -> Any:
    """Return TorchRec's ``EmbeddingCollection`` of one table on the meta device, where nobody makes the whole table."""
    from torchrec import EmbeddingCollection, EmbeddingConfig
    from torchrec.optim import RowWiseAdagrad
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

    config = EmbeddingConfig(name=name, embedding_dim=dim, num_embeddings=rows, feature_names=[name])
    collection = EmbeddingCollection(tables=[config], device=torch.device("meta"))
    rules = {"adagrad": torch.optim.Adagrad, "rowwise_adagrad": RowWiseAdagrad, "sgd": torch.optim.SGD}
    settings = {"lr": group["lr"]} if group["rule"] == "sgd" else {"lr": group["lr"], "eps": group["eps"]}
    apply_optimizer_in_backward(rules[group["rule"]], collection.parameters(), settings)
    return collection


def make_engine(
    shape: TableShape, layout: Layout, group: Mapping[str, Any], device: torch.device, processes: Any
) -> Any:
    """Return TorchRec's ``EmbeddingCollection`` of one table over all processes, with its optimizer."""
    check_torchrec()
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.sharding_plan import column_wise, construct_module_sharding_plan, row_wise, table_wise
    from torchrec.distributed.types import ShardingEnv

    ranks = [part.rank for part in sorted(layout.parts, key=lambda part: part.column)]
    spread = {
        "row": row_wise, "table": lambda: table_wise(rank=ranks[0]), "column": lambda: column_wise(ranks=ranks)
    }  # fmt: skip
    collection = make_collection("table", shape.rows, shape.dim, group)
    sharder: Any = EmbeddingCollectionSharder()
    world = dist.get_world_size()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = construct_module_sharding_plan(
            collection,
            {"table": spread[layout.kind]()},
            sharder=sharder,
            world_size=world,
            local_size=world,
            device_type=device.type,
        )
        return sharder.shard(collection, plan, ShardingEnv.from_process_group(processes), device=device)
