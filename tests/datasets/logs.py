"""A log that goes on: some users, items and devices occur only after some time."""

import numpy as np
import polars as pl

START = 1_700_000_000


def make_log(seed, rows=300, late=110):
    """Return interactions with ties in time, items and users; some of each come first after ``late``."""
    random = np.random.default_rng(seed)
    times = random.integers(0, 150, rows)
    is_late = times > late
    users = np.where(is_late, random.integers(0, 14, rows), random.integers(0, 10, rows))
    items = np.where(is_late, random.integers(0, 30, rows), random.integers(0, 24, rows))
    devices = np.where(is_late, random.choice(["phone", "tablet", "watch"], rows), random.choice(["phone", "tv"], rows))
    log = pl.DataFrame(
        {
            "user": [f"u-{number}" for number in users],
            "asin": [f"B{97 * number % 89:03}" for number in items],
            "time": START + times,
            "click": random.integers(0, 2, rows),
            "device": devices,
            "basket": random.normal(20, 5, rows).round(1),
        }
    )
    asins = [f"B{97 * number % 89:03}" for number in range(30)]
    catalog = {
        "asin": asins,
        "title": [f"a thing no {number}" for number in range(30)],
        "category": random.choice(["tea", "books"], 30),
        "tags": random.choice(["red|big", "blue", "red|blue|big"], 30),
        "price": random.lognormal(3, 1, 30).round(1),
    }
    people = {"user": [f"u-{number}" for number in range(14)], "age": random.integers(18, 80, 14)}
    return log, pl.DataFrame(catalog), pl.DataFrame(people)


def write_source(folder, log, items=None, users=None, parts=1):
    """Write files, the log in so many parts."""
    folder.mkdir()
    bounds = np.linspace(0, len(log), parts + 1).astype(int)
    for number in range(parts):
        log[int(bounds[number]) : int(bounds[number + 1])].write_csv(folder / f"interactions-{number}.csv")
    for name, frame in (("items", items), ("users", users)):
        if frame is not None:
            frame.write_csv(folder / f"{name}.csv")
    return folder
