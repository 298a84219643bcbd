"""Search for good settings: ``python run_param_tuner.py --config tuner.yaml --gpu 0 1``."""

from fuxictr_mm.commands.scripts import run_script

if __name__ == "__main__":
    run_script("tune", __file__, "Search for good settings.")
