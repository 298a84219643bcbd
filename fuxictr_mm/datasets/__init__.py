"""Readers of public datasets: each turns the files of one owner into this library's layout."""
