"""Score the test file and write a submission: ``python prediction.py --expid DIN_MM_tiny``."""

from fuxictr_mm.commands.scripts import run_script

if __name__ == "__main__":
    run_script("predict", __file__, "Score the test file of a trained experiment, or of several runs averaged.")
