"""Run records: a folder of plain files for each run, their list, and comparisons that tell progress from noise."""
