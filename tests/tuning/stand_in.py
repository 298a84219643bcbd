"""The beginning of stand-ins for run_expid.py: options, settings of the trial, and how its result is written."""

START = """
import argparse, json, os, signal, sys, time
from pathlib import Path
from fuxictr_mm.config import config_hash, load_config

parser = argparse.ArgumentParser()
for flag in ("--config", "--expid", "--gpu", "--model_zoo"):
    parser.add_argument(flag)
parser.add_argument("--resume", action="store_true")
args = parser.parse_args()
params = load_config(args.config, args.expid)
folder = Path(params["model_root"]) / params["dataset_id"]


def note(line, file="runs.txt"):
    with open(file, "a") as stream:
        stream.write(f"{line}\\n")


def write_result(valid, test):
    folder.mkdir(parents=True, exist_ok=True)
    result = {"expid": args.expid, "config_hash": config_hash(params), "valid": valid, "test": test, "seconds": 1.5}
    (folder / f"{args.expid}.json").write_text(json.dumps({**result, "finished_at": "2025-01-01T00:00:00"}))


"""
