"""Written miniatures of public datasets, in the owners' names, types and quirks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.datasets.configuration import write_config
from fuxictr_mm.datasets.reader import load_reader
from fuxictr_mm.datasets.writer import Writer
from tests.datasets.shop import ROLES

#: Two different 64-bit ids that a float would take for one.
BIG = 2**62


@pytest.fixture
def prepare(tmp_path) -> Callable:
    """Prepare a dataset by the name of its reader; returns folder, summary and experiment ids."""

    def run(name: str, source: Path, max_len: int | None = None, folder: str = "out"):
        reader_class = load_reader(name)
        out = tmp_path / folder
        reader = reader_class(source, out / ".scratch", max_len or reader_class.history_len)
        summary = Writer(reader, name, out, verbose=0).write()
        return out, summary, write_config(out, out.name, reader, summary)

    return run


@pytest.fixture(scope="session")
def values_of() -> Callable:
    """Return the value of each code of a column, or the id in the source of each item number."""

    def read(folder: Path, name: str) -> dict[int, object]:
        path, keys = (folder / "vocabularies" / f"{name}.parquet"), ("code", "value")
        if name == "item_id":
            path, keys = folder / "items.parquet", ("item_id", "source_id")
        table = pq.read_table(path)
        return dict(zip(*(table[key].to_pylist() for key in keys), strict=True))

    return read


@pytest.fixture(scope="session")
def read_split(values_of) -> Callable:
    """Return the rows of a split, with users and items as in the source."""

    def read(folder: Path, split: str) -> list[dict]:
        items, users = values_of(folder, "item_id"), values_of(folder, "user_id")
        rows = pq.read_table(folder / split).to_pylist()
        for row in rows:
            row["user_id"] = users.get(row["user_id"])
            row["item_id"] = items[row["item_id"]]
            row["item_seq"] = [items[item] for item in row["item_seq"]]
        return rows

    return read


@pytest.fixture
def microlens(tmp_path) -> Path:
    source = tmp_path / "MicroLens-100k"
    (source / "extracted_modality_features").mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = []
    for user in range(1, 31):
        items = generator.choice(40, size=generator.integers(1, 9), replace=False) + 1
        times = generator.integers(1_583_378_629_552, 1_683_378_629_552, size=len(items))
        rows += [f"{user},{item},{time}" for item, time in zip(items, times, strict=True)]
    generator.shuffle(rows)
    (source / "MicroLens-100k_pairs.csv").write_text("\n".join(["user,item,timestamp", *rows]) + "\n")
    titles = [f'{item},"Wow, a ""title"" ☃ {item}"' for item in range(1, 41)]
    (source / "MicroLens-100k_title_en.csv").write_text("\n".join(titles) + "\n")
    counts = [f"{item}\t{10 ** (item % 4)}\t{10 ** (item % 6)}" for item in range(1, 40)]
    (source / "MicroLens-100k_likes_and_views.txt").write_text("\n".join(counts) + "\n")
    for name, dim in (("title_en_text_features_BgeM3", 6), ("image_features_CLIPRN50", 5)):
        values = generator.normal(size=(40, dim)).astype(np.float32)
        np.save(source / "extracted_modality_features" / f"MicroLens-100k_{name}.npy", values)
    return source


NEWS = (
    'N1\tsports\tgolf\tPGA "Tour winners\tA gallery.\thttps://x\t[]\t[]',
    "N2\tnews\tworld\tÜber uns\t\thttps://x\t[]\t[]",
    "N3\tsports\tgolf\tThree\tText\thttps://x\t[]\t[]",
)
BEHAVIORS = (
    "1\tU10\t11/13/2019 10:22:32 AM\tN1 N3\tN2-0 N3-1",
    "2\tU20\t11/14/2019 11:01:02 PM\t\tN1-1 N2-0",
    "3\tU10\t11/13/2019 12:10:00 AM\tN1 N9 N3\tN2-0",
)


@pytest.fixture
def mind(tmp_path) -> Path:
    source = tmp_path / "MINDsmall"
    for name in ("MINDsmall_train", "MINDsmall_dev"):
        (source / name).mkdir(parents=True)
    (source / "MINDsmall_train" / "news.tsv").write_text("\n".join(NEWS) + "\n")
    (source / "MINDsmall_train" / "behaviors.tsv").write_text("\n".join(BEHAVIORS) + "\n")
    # A news of both folders, and one of dev alone.
    (source / "MINDsmall_dev" / "news.tsv").write_text(
        f"{NEWS[0]}\nN4\tfoodanddrink\trecipes\tPie\t\thttps://x\t[]\t[]\n"
    )
    (source / "MINDsmall_dev" / "behaviors.tsv").write_text("1\tU30\t11/15/2019 7:00:00 AM\tN2\tN4-1 N1-0\n")
    return source


@pytest.fixture
def kuairand(tmp_path) -> Path:
    source = tmp_path / "KuaiRand-Pure" / "data"
    source.mkdir(parents=True)
    generator = np.random.default_rng(1)
    header = (
        "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
        "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
    )
    for part, days in (("4_08_to_4_21", range(8, 22)), ("4_22_to_5_08", range(22, 31))):
        lines = [header]
        for day in days:
            for _ in range(20):
                feedback = generator.integers(0, 2, size=7)
                time = 1649347200000 + (day - 8) * 86_400_000 + int(generator.integers(0, 4)) * 1000
                user, video, shown, tab = (int(generator.integers(0, high)) for high in (12, 25, 2, 3))
                numbers = [user, video, f"202204{day:02d}", 400, time, *feedback, 151024, 104400, 0, 0, shown, 0, tab]
                lines.append(",".join(map(str, numbers)))
        (source / f"log_standard_{part}_pure.csv").write_text("\n".join(lines) + "\n")
    (source / "log_random_4_22_to_5_08_pure.csv").write_text(header + "\n")
    columns = [
        *("user_id", "user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author"),
        *("follow_user_num", "follow_user_num_range", "fans_user_num", "fans_user_num_range", "friend_user_num"),
        *("friend_user_num_range", "register_days", "register_days_range"),
        *(f"onehot_feat{number}" for number in range(18)),
    ]
    # The last two encrypted features are empty for some users, as in the owners' file.
    users = [
        f'{user},full_active,0,-124,1,5,"(0,10]",312,"[100,1k)",0,0,3624,730+,' + ",".join(["1"] * 16) + ",,"
        for user in range(12)
    ]
    (source / "user_features_pure.csv").write_text("\n".join([",".join(columns), *users]) + "\n")
    videos = ["video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,"
              "server_height,music_id,music_type,tag"]  # fmt: skip
    for video in range(25):
        tag = ('"12,65"', "3", "")[video % 3]
        videos.append(f"{video},{video % 7},NORMAL,2020-07-08,ShortImport,1,17200.0,720,1280,98,4,{tag}")
    (source / "video_features_basic_pure.csv").write_text("\n".join(videos) + "\n")
    return source.parent


@pytest.fixture
def taobao_mm(tmp_path) -> Path:
    """The columns and types of the owners' demo files."""
    source = tmp_path / "taobao"
    source.mkdir()
    generator = np.random.default_rng(2)
    items = BIG + np.arange(30)  # differences below a float's precision
    pq.write_table(
        pa.table({name: pa.array(items[5:] if name == "205" else np.arange(25) % 4, pa.int64())
                  for name in ("205", "206", "213", "214")}),
        source / "item_features.parquet",
    )  # fmt: skip
    vectors = generator.integers(-127, 128, size=(20, 8)).astype(np.int8)
    pq.write_table(
        pa.table({"205": pa.array(items[:20]), "205_c": pa.array(vectors.tolist(), pa.list_(pa.int8()))}),
        source / "scl_embedding_int8_p90.parquet",
    )
    for split, users in (("train", np.arange(-100, 120, 10)), ("test", np.arange(-20, 0, 10))):
        histories = []
        for number in range(len(users)):
            liked = generator.choice(np.r_[items, BIG + 500], size=number)
            histories.append(np.r_[np.zeros(max(25 - number, 0), np.int64), liked].tolist())  # left padded
        features = {"129_1": pa.array(users)}
        features |= {f"130_{n}": pa.array(generator.integers(0, 3, size=len(users))) for n in range(1, 6)}
        features |= {name: pa.array(histories, pa.list_(pa.int64())) for name in ("150_2_180", "151_2_180")}
        pq.write_table(pa.table(features), source / f"{split}_user_features.parquet")
        rows = generator.permutation(np.repeat(users, 3))
        labels = generator.integers(0, 2, size=len(rows))
        pq.write_table(
            pa.table({
                "label_0": pa.array([[1 - int(y), int(y)] for y in labels], pa.list_(pa.int8())),
                "129_1": pa.array(rows),
                "205": pa.array(generator.choice(items, size=len(rows))),
            }),
            source / f"{split}_samples.parquet",
        )  # fmt: skip
    return source


@pytest.fixture
def longctr(tmp_path) -> Path:
    source = tmp_path / "KuaiVideo_x2"
    source.mkdir()
    generator = np.random.default_rng(3)
    sequences = [generator.integers(1, 20, size=size).tolist() for size in (0, 3, 9)]
    pq.write_table(pa.table({"user_index": [0, 1, 2], "full_item_seq": sequences}), source / "user_info.parquet")
    codes = [0, *(1 + number % 6 for number in range(19))]
    topics = [[0, 0], *([number % 3, 0] for number in range(19))]
    vectors = generator.normal(size=(20, 4)).astype(np.float32)
    pq.write_table(
        pa.table({
            "item_index": range(20),
            "item_id": codes,
            "topics": topics,
            "image_emb_dim64": vectors.tolist(),
        }),
        source / "item_info.parquet",
    )  # fmt: skip
    for split in ("train", "valid", "test"):
        user = generator.integers(0, 3, size=40)
        pq.write_table(
            pa.table({
                "user_index": user,
                "item_index": generator.integers(1, 20, size=40),
                "seq_len": [int(generator.integers(0, len(sequences[u]) + 1)) for u in user],
                "device_type": generator.integers(0, 3 if split == "train" else 5, size=40),
                "is_click": generator.integers(0, 2, size=40),
            }),
            source / f"{split}.parquet",
        )  # fmt: skip
    return source


@pytest.fixture
def amazon_electronics(tmp_path) -> Path:
    source = tmp_path / "AmazonElectronics_x1"
    source.mkdir()
    generator = np.random.default_rng(4)
    category = generator.integers(0, 4, size=30)
    for split, users in (("train", range(40)), ("test", range(40, 50))):
        lines = ["label,user_id,item_id,cate_id,item_history,cate_history"]
        for user in users:
            history = generator.integers(0, 30, size=user % 5)
            item = int(generator.integers(0, 30))
            ids, categories = ("^".join(map(str, values)) for values in (history, category[history]))
            lines.append(f"{int(user % 3 == 0)},{user},{item},{category[item]},{ids},{categories}")
        (source / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return source


@pytest.fixture
def shop(tmp_path):
    """A shop of three CSV files; the last item of the log is in no item file."""
    source = tmp_path / "exports"
    source.mkdir()
    random = np.random.default_rng(0)
    rows = 300
    asins = [f"B{number:03}" for number in random.choice(900, 30, replace=False)]
    log = pl.DataFrame(
        {
            "user": [f"u-{number}" for number in random.integers(0, 12, rows)],
            "asin": [asins[number] for number in random.integers(0, 30, rows)],
            "time": np.sort(random.integers(0, 150, rows)) + 1_700_000_000,
            "click": random.integers(0, 2, rows),
            "device": random.choice(["phone", "tablet"], rows),
            "basket": random.normal(20, 5, rows).round(3),
        }
    )
    log.sample(fraction=1, shuffle=True, seed=1).write_csv(source / "interactions.csv")
    pl.DataFrame(
        {
            "asin": asins[:-1],
            "title": [f"a thing no {number}" for number in range(29)],
            "category": random.choice(["tea", "books"], 29),
            "tags": random.choice(["red|big", "blue", "red|blue|big"], 29),
            "price": random.lognormal(3, 1, 29).round(2),
        }
    ).write_csv(source / "items.csv")
    pl.DataFrame(
        {
            "user": [f"u-{number}" for number in range(11)],
            "age": random.integers(18, 80, 11),
            "country": ["fr", "de"] * 5 + [None],
        }
    ).write_csv(source / "users.csv")
    return source


@pytest.fixture
def prepare_log(tmp_path):
    """Prepare a log with options as of the command line; returns folder, summary and experiment ids."""

    def prepare(source, folder="out", max_len=100, **options):
        out = tmp_path / folder
        reader = load_reader("log")(source, out / ".scratch", max_len)
        reader.configure({"roles": ROLES, **options})
        summary = Writer(reader, "log", out, verbose=0).write()
        return out, summary, write_config(out, out.name, reader, summary, [reader.label, *reader.other_labels])

    return prepare
