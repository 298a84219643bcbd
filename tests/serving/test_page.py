"""The page at ``/``: in Chromium, and its script in Node with the few parts of a document that it uses."""

import html
import json
import re
import shutil
import subprocess
import urllib.request
from importlib.resources import files

import pyarrow.parquet as pq
import pytest

from tests.serving.server import ROWS, TITLES, Server

NODE = shutil.which("node")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

DOCUMENT = """
class Element {
  constructor() { this.children = []; this.value = ""; this.textContent = ""; this.listeners = {}; }
  appendChild(child) { this.children.push(child); return child; }
  replaceChildren(...children) { this.children = children; }
  add(option) { if (!this.children.length) this.value = option.value; this.children.push(option); }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  get cells() { return this.children; }
  deleteCell(place) { this.children.splice(place, 1); }
}
class Option extends Element { constructor(text, value) { super(); this.textContent = text; this.value = value; } }
const elements = {}, base = process.argv[1], fetched = fetch;
const get_element = id => elements[id] ||= new Element();
globalThis.Option = Option;
globalThis.location = {hash: ""};
const stored = {token: process.argv[2]};
globalThis.sessionStorage = {getItem: name => stored[name] ?? null};
globalThis.document = {getElementById: get_element, createElement: () => new Element()};
globalThis.fetch = (path, options) => fetched(base + "/" + path, options);
const ranking = get_element("ranking"), head = new Element();
head.children = ["Rank", "Item", "Title"].map(text => Object.assign(new Element(), {textContent: text}));
ranking.tHead = {rows: [head]};
ranking.tBodies = [new Element()];
"""

CLICK = """
(async () => {
  for (let i = 0; i < 200 && !elements.rank?.listeners.click; i++) await new Promise(done => setTimeout(done, 50));
  await elements.rank.listeners.click();
  const texts = row => row.children.map(cell => String(cell.textContent));
  const error = elements.error.textContent, user = elements.user.value;
  console.log(JSON.stringify({error, user, head: texts(head), rows: ranking.tBodies[0].children.map(texts)}));
})();
"""


@pytest.fixture
def server(exported):
    server = Server(exported, "--users", ROWS, "--titles", TITLES)
    yield server
    server.stop()


def check(server, user, head, rows):
    """Compare a table with the scores of a user."""
    candidates = server.get("/page_data")["items"]
    expected = server.score({"user": user, "candidates": candidates, "explain": True})
    assert head == ["Rank", "Item", "Title", "score", "attention to the history"]
    order = sorted(range(len(candidates)), key=lambda i: -expected["scores"][i])
    titles = pq.read_table(TITLES, columns=["item_id", "item_title"]).to_pydict()
    titles = dict(zip(titles["item_id"], titles["item_title"], strict=True))
    for place, (row, i) in enumerate(zip(rows, order, strict=True), start=1):
        assert row[:4] == [str(place), str(candidates[i]), titles[candidates[i]], f"{expected['scores'][i]:.4f}"]
        for reason in expected["reasons"][i]:
            assert (titles[reason["item"]] or str(reason["item"])) in row[4]


@pytest.mark.skipif(NODE is None, reason="needs Node")
def test_digits_that_are_typed():
    page = files("fuxictr_mm_serving").joinpath("page.html").read_text(encoding="utf-8")
    line = re.search(r"^const ids = .*$", page, re.M)[0]
    typed = "5, -3 x1 9007199254740993"
    code = f"let textIds = process.argv[1] === 'text'; {line} console.log(JSON.stringify(ids({json.dumps(typed)})))"
    for kind, expected in (
        ("integer", [5, -3, "x1", "9007199254740993"]),
        ("text", ["5", "-3", "x1", "9007199254740993"]),
    ):
        done = subprocess.run([NODE, "-e", code, kind], capture_output=True, text=True, timeout=60)
        assert json.loads(done.stdout) == expected


@pytest.mark.skipif(NODE is None, reason="needs Node")
@pytest.mark.parametrize("items", [["a b", "c"], ["a,b"], ["[1]"], [""], ["a", "b"], [3, "9007199254740993"], []])
def test_candidates_that_are_written_are_read(items):
    page = files("fuxictr_mm_serving").joinpath("page.html").read_text(encoding="utf-8")
    lines = re.findall(r"^const (?:ids|written) = .*$", page, re.M)
    code = f"let textIds = false; {' '.join(lines)} console.log(JSON.stringify(ids(written({json.dumps(items)}))))"
    done = subprocess.run([NODE, "-e", code], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == items


@pytest.mark.skipif(NODE is None, reason="needs Node")
def test_a_link_of_any_text():
    page = files("fuxictr_mm_serving").joinpath("page.html").read_text(encoding="utf-8")
    line = re.search(r"^const textOf = .*$", page, re.M)[0]
    code = f"{line} console.log(JSON.stringify(process.argv.slice(1).map(textOf)))"
    done = subprocess.run([NODE, "-e", code, "%", "a%20b"], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == ["%", "a b"]


@pytest.mark.slow
@pytest.mark.skipif(NODE is None, reason="needs Node")
def test_the_script_in_node(server):
    with urllib.request.urlopen(server.url + "/", timeout=10) as answer:
        page = answer.read().decode()
    script = DOCUMENT + re.search(r'"use strict";(.*)</script>', page, re.S)[1] + CLICK
    done = subprocess.run([NODE, "-e", script, server.url], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["error"] == ""
    check(server, json.loads(found["user"]), found["head"], found["rows"])


@pytest.mark.skipif(NODE is None, reason="needs Node")
def test_the_token_of_the_page(tmp_path):
    """Without a token the page asks for one; with one it sends its UTF-8."""
    page = files("fuxictr_mm_serving").joinpath("page.html").read_text(encoding="utf-8")
    answers = """
    const data = {users: [], items: [], context: []};
    globalThis.fetch = async (path, {headers} = {}) => {
      const good = headers?.authorization === "Bearer " + Buffer.from("s\\u00e9\\u4e2d").toString("latin1");
      return {ok: good, status: good ? 200 : 401, json: async () => good ? data : {error: "refused"}};
    };
    """
    shown = """
    const show = () => console.log(JSON.stringify([elements.token_label.hidden, elements.error?.textContent || ""]));
    setTimeout(show, 200);
    """
    document = DOCUMENT.replace("class Element {", "class Element { remove() {} insertAdjacentElement() {}")
    script = document + answers + re.search(r'"use strict";(.*)</script>', page, re.S)[1] + shown
    for token, expected in (("", [False, "refused"]), ("s\u00e9\u4e2d", [True, ""])):
        done = subprocess.run([NODE, "-e", script, "", token], capture_output=True, text=True, timeout=60)
        assert json.loads(done.stdout) == expected, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_field_of_the_token_is_not_shown_where_none_is_needed(tmp_path):
    page = files("fuxictr_mm_serving").joinpath("page.html").read_text(encoding="utf-8")
    script = "<script>document.title = getComputedStyle(get('token_label')).display</script></body>"
    (tmp_path / "page.html").write_text(page.replace("</body>", script), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'chromium'}", "--dump-dom")
    command = [CHROMIUM, *options, (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "<title>none</title>" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_candidates_are_ranked_in_chromium(server, tmp_path):
    user = server.get("/page_data")["users"][3]
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom")
    command = [CHROMIUM, *options, "--virtual-time-budget=20000", f"{server.url}/#{user}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r'id="error"[^>]*></p>', done.stdout)
    table = re.search(r"<table.*</table>", done.stdout, re.S)[0]
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)]
    head, *rows = [[html.unescape(cell) for cell in row] for row in cells]
    check(server, user, head, rows)
