"""Who may read what: the token, and logs without user data."""

from starlette.datastructures import URL
from starlette.requests import Request
from starlette.testclient import TestClient

from fuxictr_mm_serving import ServingError
from fuxictr_mm_serving.server import make_app
from fuxictr_mm_serving.settings import Settings, read_token
from tests.errors import raises_naming
from tests.serving.server import REQUEST


def test_a_token(exported, monkeypatch, tmp_path):
    with TestClient(make_app(Settings(folder=str(exported), token="secret"))) as client:
        assert client.get("/health").status_code == 200
        for header in ({}, {"authorization": "Bearer other"}, {"authorization": "Basic secret"}):
            assert client.post("/score", json=REQUEST, headers=header).status_code == 401
        for path in ("/", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        for path in ("/page_data", "/metrics"):
            assert client.get(path).status_code == 401
        assert client.post("/titles", json={"candidates": [1]}).status_code == 401
        good = client.post("/score", json=REQUEST, headers={"authorization": "Bearer secret"})
        assert good.status_code == 200
        # What the Host header makes of the URL, "x/health?", opens nothing.
        with monkeypatch.context() as patch:
            patch.setattr(Request, "url", URL("http://x/health?/score"))
            assert client.post("/score", json=REQUEST).status_code == 401
    with TestClient(make_app(Settings(folder=str(exported), token="sécret"))) as client:
        header = "Bearer sécret".encode()
        assert client.post("/score", json=REQUEST, headers={"authorization": header}).status_code == 200
    monkeypatch.delenv("FUXICTR_MM_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("FUXICTR_MM_TOKEN", "secret\n")
    assert read_token(None) == "secret"
    (tmp_path / "token").write_text("\n")
    for path, value in ((None, ""), (None, " "), (str(tmp_path / "token"), "secret")):
        monkeypatch.setenv("FUXICTR_MM_TOKEN", value)
        with raises_naming(ServingError, path or "FUXICTR_MM_TOKEN"):
            read_token(path)


def test_names_of_the_host_header(exported):
    """A page whose own name leads to this server (DNS rebinding) gets nothing, also of the paths without a token."""
    with TestClient(make_app(Settings(folder=str(exported), hosts=("models.example",)))) as client:
        for host in ("localhost:8000", "127.0.0.1:8000", "10.1.2.3", "[::1]:8000", "Models.Example.:80", "localhost."):
            assert client.get("/ready", headers={"host": host}).status_code == 200
        for host in ("rebound.example:8000", "localhost.rebound.example", "127.0.0.1.rebound.example", "models", "[x]"):
            for path in ("/ready", "/page_data", "/"):
                found = client.get(path, headers={"host": host})
                assert (found.status_code, list(found.json())) == (421, ["error"])
            assert client.post("/score", json=REQUEST, headers={"host": host}).status_code == 421
        assert 'path="/score",status="421"' in client.get("/metrics", headers={"host": "localhost"}).text


def test_a_bug_is_counted_and_no_data_is_logged(client, monkeypatch, caplog):
    def fail(**_):
        raise KeyError("of a user")

    monkeypatch.setattr(client.app.state.service, "score", fail)
    with caplog.at_level("INFO"):
        found = client.post("/score", json=REQUEST)
    assert (found.status_code, list(found.json())) == (500, ["error"])
    assert "of a user" not in caplog.text + found.text
    assert "KeyError" in caplog.text
    assert "test_access.py" in caplog.text
    assert 'path="/score",status="500"' in client.get("/metrics").text
