"""Train and evaluate one experiment: ``python run_expid.py --expid DIN_MM_tiny``."""

from fuxictr_mm.commands.scripts import run_script

if __name__ == "__main__":
    run_script("train", __file__, "Train and evaluate one experiment.")
