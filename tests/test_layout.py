"""Tests have the path of what they test: ``tests/data/test_parquet.py`` tests ``fuxictr_mm/data/parquet.py``."""

import ast
from functools import cache
from pathlib import Path

from tests.paths import ROOT

TESTS = ROOT / "tests"

#: Where the tests of a package are, below tests/. ``test_init.py`` tests ``__init__.py``.
PACKAGES = {"fuxictr_mm": "", "fuxictr_mm_serving": "serving", "model_zoo": "model_zoo", "benchmarks": "benchmarks"}

#: Modules without a test file of their own, and the file whose tests reach them through what calls them.
TESTED_BY = {
    "fuxictr_mm/arguments": "test_cli",
    "fuxictr_mm/autopilot/candidates": "autopilot/test_plans",
    "fuxictr_mm/autopilot/folder": "commands/test_autopilot",
    "fuxictr_mm/autopilot/outcome": "autopilot/test_stages",
    "fuxictr_mm/check_data/arrays": "check_data/test_layout",
    "fuxictr_mm/check_data/chunks": "check_data/test_check",
    "fuxictr_mm/check_data/columns": "check_data/test_layout",
    "fuxictr_mm/check_data/described": "check_data/test_layout",
    "fuxictr_mm/check_data/equal_rows": "check_data/test_splits",
    "fuxictr_mm/check_data/files": "check_data/test_layout",
    "fuxictr_mm/check_data/interactions": "check_data/test_splits",
    "fuxictr_mm/check_data/met_again": "check_data/test_splits",
    "fuxictr_mm/check_data/modalities": "check_data/test_vectors",
    "fuxictr_mm/check_data/number_columns": "check_data/test_items",
    "fuxictr_mm/check_data/numbering": "check_data/test_translation",
    "fuxictr_mm/check_data/split_reading": "check_data/test_splits",
    "fuxictr_mm/check_data/title_faults": "check_data/test_titles",
    "fuxictr_mm/commands/check_data": "check_data/test_check",
    "fuxictr_mm/commands/check_submission": "test_submission",
    "fuxictr_mm/commands/compare": "evaluation/test_compare",
    "fuxictr_mm/commands/completion": "test_cli",
    "fuxictr_mm/commands/diagnose": "diagnosis/test_diagnose",
    "fuxictr_mm/commands/embed/align": "embeddings/test_align",
    "fuxictr_mm/commands/embed/encode": "embeddings/test_encode",
    "fuxictr_mm/commands/embed/pretrain": "embeddings/test_pretrain",
    "fuxictr_mm/commands/embed/options": "commands/test_embed",
    "fuxictr_mm/commands/embed/quantize": "embeddings/test_quantize",
    "fuxictr_mm/commands/embed/reduce": "commands/test_embed",
    "fuxictr_mm/commands/export": "serving/test_fuxictr_graph",
    "fuxictr_mm/commands/export_hub": "test_hub",
    "fuxictr_mm/commands/influence": "evaluation/test_influence",
    "fuxictr_mm/commands/list": "test_cli",
    "fuxictr_mm/commands/plan": "plan/test_memory",
    "fuxictr_mm/commands/predict": "test_command_line",
    "fuxictr_mm/commands/prepare": "datasets/test_prepare",
    "fuxictr_mm/commands/report": "report/test_page",
    "fuxictr_mm/commands/score": "serving/test_scoring",
    "fuxictr_mm/commands/scripts": "test_cli",
    "fuxictr_mm/commands/serve": "test_cli",
    "fuxictr_mm/commands/train": "test_command_line",
    "fuxictr_mm/commands/tune": "tuning/test_grid",
    "fuxictr_mm/config/features": "data/test_schema",
    "fuxictr_mm/config/signature": "config/test_experiment",
    "fuxictr_mm/config/sizes": "autopilot/test_plans",
    "fuxictr_mm/data/feature_map": "data/test_schema",
    "fuxictr_mm/data/interaction_files": "data/test_interactions",
    "fuxictr_mm/data/interleaved": "data/test_shards",
    "fuxictr_mm/data/item_columns": "data/test_decoding",
    "fuxictr_mm/data/item_parts": "data/test_items",
    "fuxictr_mm/data/labels": "data/test_decoding",
    "fuxictr_mm/data/summary": "data/test_interactions",
    "fuxictr_mm/datasets/configuration": "datasets/test_log",
    "fuxictr_mm/datasets/summary": "datasets/test_writer",
    "fuxictr_mm/datasets/synthetic": "commands/test_synth",
    "fuxictr_mm/fuxictr_imports": "test_compat",
    "fuxictr_mm/datasets/folder": "datasets/test_writer",
    "fuxictr_mm/datasets/own/base": "datasets/own/test_later",
    "fuxictr_mm/datasets/own/buckets": "datasets/test_log",
    "fuxictr_mm/datasets/own/catalog": "datasets/test_log",
    "fuxictr_mm/datasets/own/column_names": "datasets/own/test_tables",
    "fuxictr_mm/datasets/own/files": "datasets/test_log",
    "fuxictr_mm/datasets/own/ids": "datasets/test_log",
    "fuxictr_mm/datasets/own/labelling": "datasets/own/test_labels",
    "fuxictr_mm/datasets/own/new_rows": "datasets/own/test_later",
    "fuxictr_mm/datasets/own/number_column": "datasets/own/test_other_texts",
    "fuxictr_mm/datasets/own/number_texts": "datasets/own/test_amounts",
    "fuxictr_mm/datasets/own/options": "datasets/test_log",
    "fuxictr_mm/datasets/own/sampled": "datasets/test_log",
    "fuxictr_mm/datasets/own/source": "datasets/test_log",
    "fuxictr_mm/datasets/own/training": "datasets/test_log",
    "fuxictr_mm/datasets/own/vectors": "datasets/test_log",
    "fuxictr_mm/datasets/own/warnings": "datasets/test_log",
    "fuxictr_mm/diagnosis/attention_hooks": "diagnosis/test_attention",
    "fuxictr_mm/diagnosis/metrics": "diagnosis/test_diagnose",
    "fuxictr_mm/diagnosis/trained": "diagnosis/test_diagnose",
    "fuxictr_mm/embedding_model": "test_model",
    "fuxictr_mm/embeddings/click_rows": "embeddings/test_swing",
    "fuxictr_mm/embeddings/content_inputs": "embeddings/test_contrastive",
    "fuxictr_mm/embeddings/early_stopping": "embeddings/test_align",
    "fuxictr_mm/embeddings/fit_reducer": "embeddings/test_reduce",
    "fuxictr_mm/embeddings/image_names": "embeddings/test_images",
    "fuxictr_mm/embeddings/item_tables": "encoding/test_text_files",
    "fuxictr_mm/embeddings/quantize_report": "embeddings/test_quantize",
    "fuxictr_mm/encoding/columns": "encoding/test_encode",
    "fuxictr_mm/encoding/files": "encoding/test_encode",
    "fuxictr_mm/encoding/vocabulary": "encoding/test_encode",
    "fuxictr_mm/evaluation/combine": "evaluation/test_ensemble",
    "fuxictr_mm/evaluation/influence_ranking": "evaluation/test_influence",
    "fuxictr_mm/evaluation/influence_training": "evaluation/test_influence",
    "fuxictr_mm/group_metrics": "test_metrics",
    "fuxictr_mm/layers/contrast": "model_zoo/test_SEMINAR",
    "fuxictr_mm/layers/factorization": "test_factorized",
    "fuxictr_mm/layers/information_flow": "model_zoo/test_INFNet",
    "fuxictr_mm/layers/one_trans": "model_zoo/test_OneTrans",
    "fuxictr_mm/layers/semantic_ids": "model_zoo/test_Transformer_DCN_Quant",
    "fuxictr_mm/layers/top_k_attention": "model_zoo/test_TWIN",
    "fuxictr_mm/layers/triton_kernels/rows": "layers/triton_kernels/test_activation_unit",
    "fuxictr_mm/metric_names": "test_metrics",
    "fuxictr_mm/prediction": "test_experiment",
    "fuxictr_mm/reduction/reducer": "embeddings/test_reduce",
    "fuxictr_mm/reduction/summary": "embeddings/test_reduce",
    "fuxictr_mm/report/comparisons": "report/test_page",
    "fuxictr_mm/report/drawing": "report/test_figures",
    "fuxictr_mm/report/experiments": "report/test_page",
    "fuxictr_mm/report/report": "report/test_page",
    "fuxictr_mm/report/settings": "report/test_page",
    "fuxictr_mm/runs/evaluations": "runs/test_reading",
    "fuxictr_mm/runs/finished": "runs/test_run",
    "fuxictr_mm/runs/paths": "runs/test_run",
    "fuxictr_mm/runs/result": "runs/test_reading",
    "fuxictr_mm/serving/graph_files": "serving/test_graphs",
    "fuxictr_mm/serving/item_rows": "serving/test_graphs",
    "fuxictr_mm/serving/pair_sizes": "serving/test_graphs",
    "fuxictr_mm/serving/prepared": "serving/test_own_ids",
    "fuxictr_mm/serving/rewrites": "serving/test_graphs",
    "fuxictr_mm/serving/row_graph": "serving/test_graphs",
    "fuxictr_mm/serving/user_graphs": "serving/test_graphs",
    "fuxictr_mm/settings_problems": "test_experiment",
    "fuxictr_mm/sparse_products": "layers/test_pooling",
    "fuxictr_mm/table_settings": "test_experiment",
    "fuxictr_mm/tables/gradients": "tables/test_kinds",
    "fuxictr_mm/tables/layout": "tables/test_sharded",
    "fuxictr_mm/tables/placement": "tables/test_sharded",
    "fuxictr_mm/tables/torchrec": "tables/test_sharded",
    "fuxictr_mm/training/metric_checks": "training/test_run",
    "fuxictr_mm/training/replicas": "training/test_distributed",
    "fuxictr_mm/training/scoring": "training/test_loop",
    "fuxictr_mm/training/settings_text": "training/test_run",
    "fuxictr_mm/tuning/child": "tuning/test_runner",
    "fuxictr_mm/tuning/database": "tuning/test_study",
    "fuxictr_mm/tuning/local_search": "tuning/test_sampler",
    "fuxictr_mm/tuning/source": "tuning/test_folds",
    "fuxictr_mm/tuning/stored_trials": "tuning/test_study",
    "fuxictr_mm/tuning/study_trials": "tuning/test_study",
    "fuxictr_mm/tuning/trial_files": "tuning/test_study",
    "fuxictr_mm_serving/cache": "serving/test_load",
    "fuxictr_mm_serving/deadline": "serving/test_load",
    "fuxictr_mm_serving/errors": "serving/test_scoring",
    "fuxictr_mm_serving/features": "serving/test_scoring",
    "fuxictr_mm_serving/hosts": "serving/test_access",
    "fuxictr_mm_serving/numbering": "serving/test_own_ids",
    "fuxictr_mm_serving/prepared": "serving/test_scoring",
    "fuxictr_mm_serving/server": "serving/test_access",
    "fuxictr_mm_serving/settings": "serving/test_access",
    "fuxictr_mm_serving/users": "serving/test_own_ids",
}

#: Test files of no single module: documents, the whole process, and what holds for every model or module.
THEMES = {
    "data/test_histories": "several histories in one row, from files to a model",
    "data/test_other_ids": "runs on other ids and on texts",
    "datasets/own/test_later_forms": "forms and rows of a later log",
    "docs/test_command_line_page": "docs/command_line.md",
    "docs/test_commands": "commands in the documentation",
    "docs/test_pages": "the other pages",
    "docs/test_settings_page": "docs/settings.md",
    "docs/test_site_hooks": "fields on the API pages",
    "encoding/test_runs": "runs on raw columns, from files to scores",
    "model_zoo/test_author_errors": "errors of who writes a model",
    "model_zoo/test_contract": "every model",
    "model_zoo/test_float32": "every model in float32",
    "model_zoo/test_settings": "settings that models refuse",
    "model_zoo/test_short_history": "models that search, with the newest items in a column of their own",
    "model_zoo/test_long_world": "models that search, on long histories",
    "model_zoo/test_tasks_world": "models of several labels",
    "report/test_browser": "the page in a browser",
    "serving/test_deploy": "the files in deploy/",
    "serving/test_later_items": "exports of a later log, from prepare to scores",
    "serving/test_page": "the page of the server",
    "serving/test_switch": "an export that is replaced while the server runs",
    "test_examples": "the notebooks",
    "test_gpu": "every model and command on a GPU",
    "test_imports": "the direction of imports",
    "test_sample_weight": "weights of rows, from files to a run",
    "test_layout": "the paths of tests",
    "test_messages": "messages of all modules",
    "test_model_files": "model files written for FuxiCTR",
    "test_package": "the wheel and the source distribution",
    "training/test_elastic": "a run on two hosts",
    "tuning/test_model_files": "results of a model file that has changed",
}


def below(folder: Path, pattern: str) -> set[str]:
    """Return the paths of files from a folder on, without their ending."""
    return {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob(pattern)}


MODULES = {f"{package}/{path}" for package in PACKAGES for path in below(ROOT / package, "*.py")}
TEST_FILES = below(TESTS, "test_*.py")


def path_of_test(module: str) -> str:
    """Return the path of the test file of a module, below tests/ and without its ending."""
    package, *folders, name = module.split("/")
    name = "test_init" if name == "__init__" else f"test_{name.lstrip('_')}"
    return "/".join(part for part in (PACKAGES[package], *folders, name) if part)


@cache
def read(path: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the files that a file imports, in its functions too, and its strings."""
    names, texts = set(), set()
    for node in ast.walk(ast.parse((ROOT / f"{path}.py").read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
    paths = {name.replace(".", "/") for name in names if name.split(".")[0] in {*PACKAGES, "tests"}}
    files = {file for path in paths for file in (path, f"{path}/__init__") if (ROOT / f"{file}.py").is_file()}
    return frozenset(files), frozenset(texts)


@cache
def files_of(test: str) -> frozenset[str]:
    """Return a test file, the helpers that it imports, what it mirrors, and the commands and scripts that it names."""
    fixtures = Path("tests", test).with_name("conftest.py")  # not of tests/conftest.py, which imports much for all
    has_fixtures = "/" in test and (ROOT / fixtures).is_file()
    found, new = set(), {f"tests/{test}", *([fixtures.with_suffix("").as_posix()] if has_fixtures else [])}
    while new:
        found |= new
        new = {path for known in new for path in read(known)[0] if path.startswith("tests/")} - found
    texts = {text for path in found for text in read(path)[1]}
    scripts = {path.stem for path in ROOT.glob("*.py") if path.name in texts}
    texts |= {text for path in scripts for text in read(path)[1]}
    commands = {module for module in MODULES if module.startswith("fuxictr_mm/commands/")}
    named = {module for module in commands if Path(module).name.replace("_", "-") in texts}
    return frozenset({*found, *named, *scripts, *(m for m in MODULES if path_of_test(m) == test)})


def is_reached(module: str, test: str) -> bool:
    """Return whether a test file imports a module, itself or through modules beside it."""
    found, new = set(), set(files_of(test))
    while new:
        found |= new
        new = {path for known in new for path in read(known)[0]} - found
        found |= new
        new = {path for path in new if Path(path).parent == Path(module).parent}
    return module in found


def test_every_module_has_a_test_file():
    needed = {m for m in MODULES if not m.startswith("benchmarks/") and not m.endswith(("__init__", "__main__"))}
    assert {module for module in needed if path_of_test(module) not in TEST_FILES} == set(TESTED_BY)


def test_every_test_file_has_a_module_or_a_theme():
    of_modules = {path_of_test(module) for module in MODULES} | set(TESTED_BY.values())
    assert TEST_FILES - of_modules == set(THEMES)


def test_the_file_that_tests_a_module_reaches_it():
    assert set(TESTED_BY.values()) <= TEST_FILES
    assert [module for module, test in TESTED_BY.items() if not is_reached(module, test)] == []


def test_what_several_files_use_is_in_no_test_file():
    files = {f"tests/{test}" for test in TEST_FILES}
    assert {(test, file) for test in TEST_FILES for file in read(f"tests/{test}")[0] & files} == set()
