"""Small files in the layouts of the public logs of docs/your_data/public_logs.md."""

import gzip
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

ROWS, USERS, ITEMS = 600, 20, 30


def write_lines(path: Path, rows: list, separator: str = ",", header: str = "", encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [*([header] if header else []), *(separator.join(map(str, row)) for row in rows)]
    content = "".join(f"{line}\n" for line in lines).encode(encoding)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_public_logs(folder: Path) -> None:
    """Write them all below a folder."""
    random = np.random.default_rng(5)
    users, items = random.integers(1, USERS + 1, ROWS), random.integers(1, ITEMS + 1, ROWS)
    stars, times = random.integers(1, 6, ROWS), np.sort(1_570_000_000 + random.integers(0, 400_000, ROWS))
    ratings = list(zip(users, items, stars, times, strict=True))
    films = range(1, ITEMS + 1)
    write_movielens(folder, ratings, films, random)
    kinds = {"taobao": ["pv", "buy", "cart", "fav"], "retailrocket": ["view", "addtocart", "transaction"]}
    kinds["rees46"] = ["view", "purchase", "cart"]
    drawn = {
        name: random.choice(of, ROWS, p=[0.7] + [0.3 / (len(of) - 1)] * (len(of) - 1)) for name, of in kinds.items()
    }
    category = random.integers(1, 5, ITEMS + 1)
    pairs = np.arange(ROWS) // 3  # three events in a row are of one user and item
    events = list(zip(users[pairs], items[pairs], times, range(ROWS), strict=True))
    write_lines(
        folder / "taobao" / "UserBehavior.csv",
        [(user, item, category[item], drawn["taobao"][row], time) for user, item, time, row in events],
    )
    moments = [datetime.fromtimestamp(int(time), timezone.utc) for time in times]
    shop = [
        (f"{moments[row]:%Y-%m-%d %H:%M:%S} UTC", drawn["rees46"][row], item, 2**60 + int(category[item]), "a.b", "x",
         9.5 + item, user, f"s-{row // 3}")
        for user, item, _, row in events
    ]  # fmt: skip
    header = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session"
    write_lines(folder / "rees46" / "2019-Oct.csv.gz", shop[: ROWS // 2], header=header)
    write_lines(folder / "rees46" / "2019-Nov.csv.gz", shop[ROWS // 2 :], header=header)
    rows = [
        (1000 * time, user, kind, item, "")
        for (user, item, time, _), kind in zip(events, drawn["retailrocket"], strict=True)
    ]
    write_lines(folder / "retailrocket" / "events.csv", rows, header="timestamp,visitorid,event,itemid,transactionid")
    days = [f"{datetime(2020, 1, 1) + timedelta(days=row // 10):%Y-%m-%d}" for row in range(ROWS)]
    bought = [(days[row], f"c{user:064d}", f"{item:010d}", 0.05, 2) for row, (user, item, *_) in enumerate(ratings)]
    write_lines(
        folder / "hm" / "transactions_train.csv", bought, header="t_dat,customer_id,article_id,price,sales_channel_id"
    )
    articles = [(f"{item:010d}", f"coat {item}", category[item]) for item in films]
    write_lines(folder / "hm" / "articles.csv", articles, header="article_id,prod_name,product_type_no")
    people = [(f"c{user:064d}", 20 + user) for user in range(1, USERS + 1)]
    write_lines(folder / "hm" / "customers.csv", people, header="customer_id,age")
    reviews = []
    for row, (user, item, star, _) in enumerate(ratings):
        review = {"review_id": f"r{row}", "user_id": f"u{user}", "business_id": f"b{item}", "stars": float(star)}
        review |= {"useful": 0, "funny": 0, "cool": 0, "text": "a", "date": f"{moments[row]:%Y-%m-%d %H:%M:%S}"}
        reviews.append((json.dumps(review),))
    write_lines(folder / "yelp" / "yelp_academic_dataset_review.json", reviews)
    write_lines(
        folder / "recbole" / "ml-100k.inter",
        ratings,
        "\t",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
    )
    of_items = [(item, f"film {item}", 1990 + item % 5, "Drama Comedy") for item in films]
    names = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    write_lines(folder / "recbole" / "ml-100k.item", of_items, "\t", names)


def write_movielens(folder: Path, ratings: list, films: range, random: np.random.Generator) -> None:
    """Write the files of 100K, 1M and 32M."""
    write_lines(folder / "ml-100k" / "u.data", ratings, "\t")
    of_films = [
        (film, f"Café {film} (1995)", "01-Jan-1995", "", f"http://x/{film}", *random.integers(0, 2, 19))
        for film in films
    ]
    write_lines(folder / "ml-100k" / "u.item", of_films, "|", encoding="latin-1")
    people = [(user, 20 + user, "MF"[user % 2], "writer", 12345) for user in range(1, USERS + 1)]
    write_lines(folder / "ml-100k" / "u.user", people, "|")
    write_lines(folder / "ml-1m" / "ratings.dat", ratings, "::")
    titles = [(film, f"Café {film} (1995)", "Drama|Children's" if film % 2 else "Comedy") for film in films]
    write_lines(folder / "ml-1m" / "movies.dat", titles, "::", encoding="latin-1")
    people = [(user, "MF"[user % 2], 25, 4, "12345-6") for user in range(1, USERS + 1)]
    write_lines(folder / "ml-1m" / "users.dat", people, "::")
    rows = [(user, film, f"{stars}.0", time) for user, film, stars, time in ratings]
    write_lines(folder / "ml-32m" / "ratings.csv", rows, header="userId,movieId,rating,timestamp")
    write_lines(
        folder / "ml-32m" / "movies.csv", [(f, f'"{t}"', g) for f, t, g in titles], header="movieId,title,genres"
    )
