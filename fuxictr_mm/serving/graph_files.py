"""Graphs of a model as files, of ``torch.export`` or of ONNX."""

from __future__ import annotations

import io
import logging
import re
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fuxictr_mm.errors import OF_A_DISK, UserError
from fuxictr_mm.serving import fuxictr_graph, graphs, item_rows, rewrites, row_graph, user_graphs
from fuxictr_mm.serving.graphs import Traced
from fuxictr_mm.serving.pair_sizes import longest_history, numbers_per_pair
from fuxictr_mm.serving.torch_graph import TorchGraph

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from fuxictr_mm_serving.graphs import Graph

logger = logging.getLogger(__name__)

#: How torch's message about a size that the model makes a constant begins, and the logger that has the line.
FIXED_SIZE, SIZES_LOGGER = "Constraints violated", "torch.fx.experimental.symbolic_shapes"


@dataclass(frozen=True)
class Written:
    """Graphs that are written: their files, how much memory they need, and those of ``torch.export`` as functions.

    ``longest_history`` is that of a user: graphs of candidates get as many at a time as there is memory for.
    """

    files: dict[str, str] = field(default_factory=dict)
    numbers_per_pair: dict[str, int] = field(default_factory=dict)
    longest_history: int | None = None
    opened: dict[str, Graph] = field(default_factory=dict)


def write_graphs(graphs: Mapping[str, Traced], folder: Path, format: str, what: str) -> Written:
    """Write the graphs of a model."""
    written = Written()
    longest = None
    logger.info(f"Graphs to export: {', '.join(graphs)}.")
    for name, traced in graphs.items():
        started = time.perf_counter()
        written.files[name] = file = f"{name}.{format}"
        program = _write_graph(traced, folder / file, f"{what} ({file})")
        if name != "user":
            written.numbers_per_pair[name] = numbers_per_pair(program, traced.names)
        if name == ("user" if "user" in graphs else "rows"):
            longest = longest_history(program, traced.names)
        if format == "pt2":
            written.opened[name] = TorchGraph(program, traced.names, traced.outputs)
        logger.info(f"{file}: exported in {time.perf_counter() - started:.1f} s")
    return replace(written, longest_history=longest)


def _write_graph(traced: Traced, path: Path, what: str) -> ExportedProgram:
    """Write a graph, of ``torch.export`` or of ONNX by the ending of its name; returns the program that is written."""
    try:
        with torch.no_grad(), _silence():
            program = torch.export.export(traced.module, traced.args, dynamic_shapes=traced.shapes, strict=False)
            return (_write_pt2 if path.suffix == ".pt2" else _write_onnx)(program, traced, path)
    except Exception as error:  # torch raises many types
        if isinstance(error, OSError) and error.errno in OF_A_DISK:
            raise
        reason = _reason(error)
        if reason.startswith(FIXED_SIZE):
            reason = size_that_is_fixed(traced) or reason
        raise UserError(f"{what} cannot be exported: {reason}") from error


def _write_onnx(program: ExportedProgram, traced: Traced, path: Path) -> ExportedProgram:
    import onnxruntime
    from onnxscript import optimizer

    onnx_program = torch.onnx.export(
        program,
        input_names=traced.names,
        output_names=traced.outputs,
        dynamo=True,
        verbose=False,
        optimize=False,  # its rules take an epsilon below 1e-8 for zero: an empty sequence was then 0 / 0
        custom_translation_table={torch.ops.aten.masked_select.default: _masked_select},  # which torch leaves out
    )
    assert onnx_program is not None
    optimizer.inline(onnx_program.model)
    optimizer.fold_constants(onnx_program.model)
    optimizer.remove_unused_nodes(onnx_program.model)
    for node in onnx_program.model.graph.all_nodes():  # of which torch keeps the paths of source files
        node.metadata_props.clear()
    onnx_program.save(str(path), external_data=False)
    onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return program


def _masked_select(values: Any, mask: Any) -> Any:
    """Return the nodes of ONNX for ``torch.masked_select``."""
    from onnxscript import opset18 as op

    one = op.Constant(value_ints=[-1])
    values = op.Expand(values, op.Shape(mask))
    mask = op.Expand(mask, op.Shape(values))
    return op.Compress(op.Reshape(values, one), op.Reshape(mask, one))


def _write_pt2(program: ExportedProgram, traced: Traced, path: Path) -> ExportedProgram:
    # Of equal scores, ONNX's TopK takes the first; torch's takes any.
    topk = torch.ops.aten.topk.default
    if any(node.target is topk for node in program.graph.nodes):
        program = program.run_decompositions({topk: _stable_topk})
    # ONNX leaves out what the graph does not read, tables above all.
    unused = {node.name for node in program.graph.nodes if node.op == "placeholder" and not node.users}
    signature = program.graph_signature
    for spec in [s for s in signature.input_specs if s.target is not None and s.arg.name in unused]:
        program.graph.erase_node(next(node for node in program.graph.nodes if node.name == spec.arg.name))
        signature.input_specs.remove(spec)
        program.state_dict.pop(spec.target, None)
        program.constants.pop(spec.target, None)
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:  # of sizes that the example has, as the tracer guesses
            program.graph.erase_node(node)
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]  # also of loops
    for node in (node for graph in graphs for node in graph.nodes):
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
            node.meta.pop(key, None)  # paths of source files
    program.graph_module.recompile()
    program.example_inputs = None
    # By way of memory: on a full disk, torch's writer of files would end the process by a signal. Tables are not in it.
    content = io.BytesIO()
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())
    return program


def _stable_topk(
    values: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Tensor, Tensor]:
    found = values.sort(stable=True, dim=dim, descending=largest)
    return found.values.narrow(dim, 0, k), found.indices.narrow(dim, 0, k)


def _reason(error: BaseException) -> str:
    """Return the operation that stops an export, and the line of the model that has it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -") for line in str(error).strip().splitlines()] or [type(error).__name__]
    text = " ".join(lines[: 2 if lines[0].startswith(FIXED_SIZE) else 1])
    line = _line_of_model(traceback.extract_tb(error.__traceback__))
    return f"{text} (at {line})" if line else text


def _line_of_model(frames: Iterable[traceback.FrameSummary]) -> str | None:
    """Return the innermost line that is neither torch's nor of what traces the model."""
    found = [f for f in frames if not ({"torch", "logging"} & {*Path(f.filename).parts} or f.filename in TRACERS)]
    return f"{Path(found[-1].filename).name}, line {found[-1].lineno}: {found[-1].line}" if found else None


def size_that_is_fixed(traced: Traced) -> str | None:
    """Return the line of the model that makes a size of its inputs a constant, or limits it; torch only logs it."""
    logger, found = logging.getLogger(SIZES_LOGGER), _Lines()
    kept = logger.handlers, logger.level, logger.propagate
    others, level = logging.getLogger("torch"), logging.getLogger("torch").level
    disabled = logging.root.manager.disable
    logger.handlers, logger.propagate = [found], False
    logger.setLevel(logging.INFO)
    others.setLevel(logging.CRITICAL)
    logging.disable(logging.NOTSET)
    try:
        with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.export.export(traced.module, traced.args, dynamic_shapes=traced.shapes, strict=False)
    except Exception:
        pass  # the same as before
    finally:
        logger.handlers, logger.propagate = kept[0], kept[2]
        logger.setLevel(kept[1])
        others.setLevel(level)
        logging.disable(disabled)
    if found.constant:
        return f"a size that varies becomes a constant (at {found.constant})"
    return f"a size that varies is limited (at {found.bound})" if found.bound else None


class _Lines(logging.Handler):
    """Lines that run while torch logs what it learns of sizes: the first that fixes one, the last that bounds one."""

    constant: str | None = None
    bound: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if self.constant is None and re.match(r"set_replacement \w+ = \d+ ", text):
            self.constant = _line_of_model(traceback.extract_stack())
        elif re.match(r"eval (?!Eq\(\w+, [\w +-]+\)).* \[guard added\]", text):
            self.bound = _line_of_model(traceback.extract_stack())


#: Files whose lines are not the model's.
TRACERS = (__file__, *(m.__file__ for m in (fuxictr_graph, graphs, item_rows, rewrites, row_graph, user_graphs)))


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the tracer's own messages off the terminal; an error holds what is needed."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
