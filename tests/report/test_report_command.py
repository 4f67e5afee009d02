"""The commands ``report`` and ``view``: their mistakes, and what the server gives to whom."""

import gzip
import http.client
import json
import socket
import struct
import subprocess
import sys
import threading

import pytest
from report_runs import make_run, write_phase

from pact_lightning.cli.main import main
from pact_lightning.report.content import Reader
from pact_lightning.report.server import ViewServer


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs" / "mine")


def test_a_page_is_written_into_its_run(run, capsys):
    main(["report", str(run)])
    text = (run / "report.html").read_text(encoding="utf-8")
    assert str(run / "report.html") in capsys.readouterr().out
    assert text.startswith("<!doctype html>")
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", ""), "loads nothing"


def test_a_page_is_made_without_the_large_libraries(run):
    program = (
        "import sys; from pact_lightning.cli.main import main; main(sys.argv[1:]); "
        "sys.exit(' '.join({'torch', 'lightning', 'transformers', 'openai'} & set(sys.modules)) or 0)"
    )
    command = [sys.executable, "-c", program, "report", str(run)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")


def test_several_runs_go_where_they_are_told(run, tmp_path):
    other = make_run(tmp_path / "other")
    main(["report", f"a={run}", f"b={other}", "--output", str(tmp_path / "both.html"), "--rollouts", "10"])
    assert "a, b" in (tmp_path / "both.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["report", "view"])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{runs}"], "is not a run's folder: it has no trajectories/; name one in it, such as {runs}/mine"),
        (["{runs}/nothing"], "there is no run {runs}/nothing"),
        (["{runs}/mine", "a={runs}/mine"], "are the same run; list each once"),
        (["{runs}/mine", "--rollouts", "0"], "must be at least 1, not 0"),
        (["{runs}/mine", "--tasks", "{runs}/none.jsonl"], "there is no file {runs}/none.jsonl"),
    ],
)
def test_mistakes_end_in_one_sentence(run, capsys, command, arguments, sentence):
    with pytest.raises(SystemExit) as ended:
        main([command, *(word.format(runs=run.parent) for word in arguments)])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert sentence.format(runs=run.parent) in told
    assert told.count("\n") == 1


@pytest.fixture
def server(run):
    with ViewServer(Reader([str(run)]), "mine") as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def index(server, **headers):
    response, body = ask(server, "/index.json", **headers)
    return response.headers["ETag"], json.loads(gzip.decompress(body))


def test_the_server_gives_page_index_and_blocks(server):
    response, body = ask(server, "/")
    assert response.status == 200
    assert b'data-live="yes"' in body
    assert "connect-src 'self'" in response.headers["Content-Security-Policy"]
    _, content = index(server)
    row = content["rollouts"][0]
    response, body = ask(server, f"/block/{row['block']}")
    assert json.loads(gzip.decompress(body))[row["at"]]["prompt"][1]["text"] == "What is asked in validation-0?"


def test_a_new_phase_is_there_at_the_next_question(server, run):
    tag, before = index(server)
    assert ask(server, "/index.json", If_None_Match=tag)[0].status == 304
    write_phase(run, 2)
    response, body = ask(server, "/index.json", If_None_Match=tag)
    assert response.status == 200
    assert len(json.loads(gzip.decompress(body))["rollouts"]) == len(before["rollouts"]) + 8


def test_files_that_vanish_are_told_and_the_next_question_is_answered(server, monkeypatch, capfd):
    def fail():
        raise FileNotFoundError("phase-0000.jsonl is gone")

    monkeypatch.setattr(server._reader, "read", fail)
    response, body = ask(server, "/index.json")
    assert (response.status, body) == (503, b"the run cannot be read right now: phase-0000.jsonl is gone\n")
    monkeypatch.undo()
    with socket.create_connection(server.server_address) as left:
        left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        left.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % server.server_port)  # and is gone
    assert ask(server, "/index.json")[0].status == 200
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "[::1]:{port}", "localhost.evil:{port}"]
)
def test_only_a_loopback_name_is_answered(server, host):
    """A page of another site can point a name of its own to 127.0.0.1, but the browser still asks for that name."""
    for path in ("/", "/index.json"):
        response, body = ask(server, path, Host=host.format(port=server.server_port))
        assert response.status == 403
        assert b"validation" not in body
    assert ask(server, "/", Host=f"localhost:{server.server_port}")[0].status == 200


@pytest.mark.parametrize(
    "path", ["/config.yaml", "/../config.yaml", "/block/..%2f..%2fconfig.yaml", "/block/", "/block/none"]
)
def test_no_file_can_be_asked_for(server, path):
    assert ask(server, path)[0].status == 404


def test_it_listens_on_loopback_alone_and_only_reads(server):
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/", method="POST")[0].status == 501


def test_a_taken_port_is_told(server, run, capsys):
    with pytest.raises(SystemExit):
        main(["view", str(run), "--port", str(server.server_port)])
    assert "give another with --port" in capsys.readouterr().err
