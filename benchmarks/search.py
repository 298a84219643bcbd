"""Search in long histories: recall of approximate forms against exact search, and time and memory against padded code.

    python -m benchmarks.search --what recall
    python -m benchmarks.search --what speed --lengths 1000 10000
    python -m benchmarks.search --what candidates --lengths 1000
    python -m benchmarks.search --what memory --lengths 1000

``recall``: the items of ``fuxictr-mm synth --preset long`` (``--items``, any item file), histories of uniformly sampled
items. The share of the K entries with the largest cosines that each form finds, and its milliseconds per row.
``speed``: milliseconds of CPU time per row, one thread, of a training step and of scoring, for each model here and for
the same formulas on padded tensors, side by side in one process; blocks take turns.
``candidates``: the same milliseconds for ``--candidates`` rows with the history of one user, which are scored.
``memory``: by how many MB a training step raises the peak of the process, by the real items of each history, at one
``max_len``; ``DIN`` has no padded form here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import memory
from fuxictr_mm.arguments import run_main
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers import EqualCodes, InnerProduct, SameCategory, directions, search, signs


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=["recall", "speed", "candidates", "memory"], default="recall")
    parser.add_argument("--lengths", nargs="+", type=int, default=[1000, 10_000], help="longest histories")
    parser.add_argument("--rows", type=int, default=256, help="rows per batch")
    parser.add_argument("--candidates", type=int, default=500, help="rows of one user")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--top_k", nargs="+", type=int, default=[20, 50, 100])
    parser.add_argument("--models", nargs="+", default=list(PADDED), help="memory also has DIN")
    parser.add_argument("--items", default="data/long_mm/item_emb.parquet:item_emb_d32_e4", help="FILE:COLUMN")
    parser.add_argument("--codes", help="FILE:COLUMN of product quantization codes, from fuxictr-mm embed quantize")
    parser.add_argument("--categories", help="FILE:COLUMN of categories")
    args = parser.parse_args()
    torch.set_num_threads(1)
    {"recall": recall, "speed": speed, "candidates": candidates, "memory": peaks}[args.what](args)


# ---- recall --------------------------------------------------------------------------------------------------------


def recall(args: argparse.Namespace) -> None:
    """Print recall against exact search and milliseconds per row, by form, K and length."""
    contents, generator = directions(_column(args.items)), torch.Generator().manual_seed(0)
    dim = contents.shape[1]
    forms: dict[str, Callable[[Tensor], dict]] = {
        "exact": lambda t: {"score": InnerProduct(contents, contents[t])},
        "8-bit content": lambda t: {"score": InnerProduct(bytes_, contents[t])},
    }
    bytes_ = (contents * 127).round().to(torch.int8)
    for bits in (32, 64, 128, 256):
        hashes = signs(contents @ torch.randn(dim, bits, generator=generator))
        forms[f"{bits} hash bits"] = lambda t, h=hashes: {"score": InnerProduct(h, h[t])}
    if args.codes:
        codes = _column(args.codes)
        forms[f"{codes.shape[1]} product codes"] = lambda t: {"score": EqualCodes(codes, codes[t])}
    if args.categories:
        categories = _column(args.categories)
        forms["newest of the category"] = lambda t: {"score": None, "allowed": SameCategory(categories, categories[t])}
    print("| form |", " | ".join(f"K {k}, {n} items" for n in args.lengths for k in args.top_k), "| ms per row |")
    print("| --- " * (2 + len(args.lengths) * len(args.top_k)) + "|")
    cases = []
    for length in args.lengths:
        index = torch.randint(1, len(contents), (args.rows * length,), generator=generator)
        offsets = torch.arange(args.rows + 1) * length
        cases.append(
            (Jagged(contents, offsets, index), torch.randint(1, len(contents), (args.rows,), generator=generator))
        )
    for name, form in forms.items():
        cells, times = [], []
        for history, target in cases:
            for top_k in args.top_k:
                started = time.process_time()
                found = search(history, top_k=top_k, **form(target))
                times.append(1000 * (time.process_time() - started) / args.rows)
                exact = search(history, top_k=top_k, **forms["exact"](target))
                hits = torch.isin(exact.values, found.values).sum()
                cells.append(f"{float(hits) / exact.num_values:.3f}")
        n = len(args.top_k)
        per_row = ", ".join(f"{statistics.mean(times[i : i + n]):.2f}" for i in range(0, len(times), n))
        print(f"| {name} | {' | '.join(cells)} | {per_row} |", flush=True)


def _column(text: str) -> Tensor:
    """Return a column ``FILE:COLUMN`` as a tensor whose row is the item id."""
    path, _, name = text.rpartition(":")
    table = pq.read_table(path, columns=["item_id", name])
    ids, values = torch.tensor(table["item_id"].to_numpy()), torch.tensor(table[name].to_pylist())
    rows = values.new_zeros(int(ids.max()) + 1, *values.shape[1:])
    rows[ids] = values
    return rows


# ---- speed ---------------------------------------------------------------------------------------------------------


def speed(args: argparse.Namespace) -> None:
    """Print milliseconds of CPU time per row of each model and of its padded form."""
    print("| model | longest | mean | train, ms per row | padded | times | score, ms per row | padded | times |")
    print("| --- " * 9 + "|")
    for length in args.lengths:
        for spread in (True, False):
            batches = [_batch(args.rows, length, spread, seed) for seed in range(args.repeats)]
            mean = statistics.mean(b.history.num_values / args.rows for b in batches)
            for name in args.models:
                ours, padded = _build(name, length), PADDED[name](length)
                cells = []
                for train in (True, False):
                    one, other = (time_ / args.rows for time_ in _times(ours, padded, batches, train))
                    cells += [f"{one:.2f}", f"{other:.2f}", f"{other / one:.1f}"]
                print(f"| {name} | {length} | {mean:.0f} | {' | '.join(cells)} |", flush=True)


def candidates(args: argparse.Namespace) -> None:
    """Print milliseconds of CPU time to score the candidates of one user, of each model and of its padded form."""
    print(f"| model | longest | history | {args.candidates} candidates, ms | padded | times |")
    print("| --- " * 6 + "|")
    for longest in args.lengths:
        for length in (3 * longest // 10, longest):
            users = [_batch(1, length, False, seed).history for seed in range(args.repeats)]
            batches = [_of_user(user, args.candidates, seed) for seed, user in enumerate(users)]
            for name in args.models:
                one, other = _times(_build(name, longest), PADDED[name](longest), batches, False)
                print(f"| {name} | {longest} | {length} | {one:.0f} | {other:.0f} | {other / one:.1f} |", flush=True)


def peaks(args: argparse.Namespace) -> None:
    """Print the MB by which a training step raises the peak, of each model and of its padded form."""
    memory.return_freed_memory()  # what a step frees is not in use before the next
    print("| model | longest | history | MB | padded |")
    print("| --- " * 5 + "|")
    for longest in args.lengths:
        for name in args.models:
            steps = [_build(name, longest), *([PADDED[name](longest)] if name in PADDED else [])]
            for step in steps:
                step(_batch(args.rows, 1, False, 0), True)  # the optimizer's state
            for length in (longest // 10, 3 * longest // 10, longest):
                batches = [_batch(args.rows, length, False, seed) for seed in range(args.repeats)]
                one, *other = (statistics.median(_raised(step, batch) for batch in batches) for step in steps)
                padded = f"{other[0]:.0f}" if other else ""
                print(f"| {name} | {longest} | {length} | {one:.0f} | {padded} |", flush=True)


def _raised(step: Callable[[Batch, bool], None], batch: Batch) -> float:
    """Return the MB by which a training step raises the peak above what is in use before it."""
    memory.return_freed_memory()
    before = memory.in_use("cpu")
    memory.reset_peak("cpu")
    step(batch, True)
    return (memory.peak("cpu") - before) / 2**20


def _of_user(user: Jagged, count: int, seed: int) -> Batch:
    """Return rows of random targets that have one history."""
    target = torch.randint(1, ITEMS, (count,), generator=torch.Generator().manual_seed(seed))
    offsets = torch.arange(count + 1) * user.num_values
    return Batch({}, target, Jagged(user.values.repeat(count), offsets), torch.zeros(count))


def _times(
    ours: Callable[[Batch, bool], None],
    padded: Callable[[Batch, bool], None],
    batches: Sequence[Batch],
    train: bool,
) -> tuple[float, float]:
    """Return the median milliseconds of CPU time of a batch, of both, which take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for batch in batches:
        for found, step in zip(times, (ours, padded), strict=True):
            started = time.process_time()
            step(batch, train)
            found.append(1000 * (time.process_time() - started))
    return statistics.median(times[0]), statistics.median(times[1])


ITEMS, DIM, CONTENT_DIM, TOP_K, SHORT = 50_000, 32, 128, 50, 50


def _batch(rows: int, length: int, spread: bool, seed: int) -> Batch:
    """Return random rows; with ``spread`` lengths are those of the world ``long``, three tenths of the longest."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.full((rows,), length)
    if spread:
        gamma = torch.distributions.Gamma(6.0, 20.0 / length)
        torch.manual_seed(seed)
        lengths = gamma.sample((rows,)).long().clamp(1, length)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    # Popular items are in many histories: the square of a uniform number.
    values = (torch.rand(int(offsets[-1]), generator=generator) ** 2 * (ITEMS - 1)).long() + 1
    target = torch.randint(1, ITEMS, (rows,), generator=generator)
    label = torch.randint(0, 2, (rows,), generator=generator).float()
    return Batch({}, target, Jagged(values.int(), offsets), label)


def _build(name: str, length: int) -> Callable[[Batch, bool], None]:
    """Return a step of a model of the zoo on items with an id and a content."""
    from fuxictr_mm.config import DatasetConfig, ExperimentConfig, LabelConfig
    from fuxictr_mm.data.feature_map import build_feature_map
    from fuxictr_mm.data.items import ItemTable
    from fuxictr_mm.data.schema import Feature
    from fuxictr_mm.registry import load_model_class

    features = [
        Feature("item_id", "categorical", "item", vocab_size=ITEMS),
        Feature("content", "embedding", "item", pretrain_dim=CONTENT_DIM, embedding_dim=DIM),
    ]
    dataset = DatasetConfig.model_construct(label_col=LabelConfig(name="label"))
    config = ExperimentConfig.model_construct(
        expid=name, model=name, dataset_id="x", dataset=dataset, embedding_dim=DIM, max_len=length
    )
    feature_map = build_feature_map(features, config)
    torch.manual_seed(0)
    content = F.normalize(torch.randn(ITEMS, CONTENT_DIM), dim=1)
    feature_map.items = ItemTable({"content": content}, torch.ones(ITEMS, dtype=torch.bool))
    settings = {"MUSE": {"content": "content"}, "ETA": {"hash_bits": 32}}.get(name, {})
    model = load_model_class(name)(
        feature_map, embedding_dim=DIM, dnn_hidden_units=[64, 32], verbose=0, model_id=name, **settings
    )

    def step(batch: Batch, train: bool) -> None:
        model.train(train)
        if train:
            model.train_step(batch)
        else:
            with torch.no_grad():
                model(batch)

    return step


class Padded(nn.Module):
    """The formulas of a model as FuxiCTR's files have them: every position embedded, ``(B, L, D)``, with a mask."""

    def __init__(self, length: int, search_by: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.length, self.search_by = length, search_by
        self.ids = nn.Embedding(ITEMS, DIM, padding_idx=0)
        self.register_buffer("content", F.normalize(torch.randn(ITEMS, CONTENT_DIM), dim=1))
        self.project = nn.Linear(CONTENT_DIM, DIM, bias=False)
        dim = 2 * DIM
        self.search_maps = nn.ModuleList(nn.Linear(dim, 64, bias=False) for _ in range(2))
        self.register_buffer("rotations", torch.randn(dim, 32))
        self.attentions = nn.ModuleList(
            nn.ModuleList(nn.Linear(*shape, bias=False) for shape in ((dim, 64), (dim, 64), (dim, 64), (64, dim)))
            for _ in range(2)
        )
        self.dnn = nn.Sequential(nn.Linear(3 * dim, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
        self.aux = nn.Sequential(nn.Linear(2 * dim, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
        self.optimizer = torch.optim.Adam(self.parameters(), fused=True)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the fields of items, ``(.., D)``."""
        return torch.cat([self.ids(ids), self.project(self.content[ids])], dim=-1)

    def attend(self, number: int, target: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        """Return target attention over padded items."""
        query, key, value, out = self.attentions[number]
        scores = torch.bmm(key(items), query(target).unsqueeze(2)).squeeze(2) / 8
        weights = scores.masked_fill(~mask, -1e9).softmax(dim=1)
        return out(torch.bmm(weights.unsqueeze(1), value(items)).squeeze(1))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the logit, and that of the search where it is trained."""
        ids, mask = batch.history.to_padded(self.length)
        ids, target_id = ids.long(), batch.target.long()
        target, items, aux = self.embed(target_id), self.embed(ids), None
        if self.search_by == "hash":
            equal = ((items @ self.rotations > 0) == (target @ self.rotations > 0).unsqueeze(1)).float()
            scores = equal.sum(dim=2)
        elif self.search_by == "content":
            scores = torch.bmm(self.content[ids], self.content[target_id].unsqueeze(2)).squeeze(2)
        else:
            first, second = self.search_maps
            scores = torch.bmm(second(items), first(target).unsqueeze(2)).squeeze(2) * mask
        if self.search_by == "trained":
            aux = self.aux(torch.cat([target, torch.bmm(scores.unsqueeze(1), items).squeeze(1)], dim=1))
        best = scores.masked_fill(~mask, -1e9).topk(min(TOP_K, self.length), dim=1).indices
        found = items.gather(1, best.unsqueeze(2).expand(-1, -1, items.shape[2]))
        long = self.attend(0, target, found, mask.gather(1, best))
        short = self.attend(1, target, items[:, -SHORT:], mask[:, -SHORT:])
        return self.dnn(torch.cat([target, short, long], dim=1)), aux

    def step(self, batch: Batch, train: bool) -> None:
        """Train on a batch, or score it."""
        self.train(train)
        if not train:
            with torch.no_grad():
                self(batch)
            return
        logit, aux = self(batch)
        label = batch.label.unsqueeze(1)
        loss = F.binary_cross_entropy_with_logits(logit, label)
        if aux is not None:
            loss = loss + F.binary_cross_entropy_with_logits(aux, label)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


PADDED: dict[str, Callable[[int], Callable[[Batch, bool], None]]] = {
    "SIM": lambda length: Padded(length, "trained").step,
    "ETA": lambda length: Padded(length, "hash").step,
    "TWIN": lambda length: Padded(length, "scores").step,
    "MUSE": lambda length: Padded(length, "content").step,
}


if __name__ == "__main__":
    run_main(main)
