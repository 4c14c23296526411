"""Serve an exported run over HTTP, with adaptation for each caller; needs jax and flatbuffers, nothing of metakit's.

metakit export runs/RUN --way 5 --shot 1 --out exported
python serving.py exported                  # on port 8000
python serving.py exported --measure 200    # asks itself as often, and prints how long the answers take

POST /adapt {"x": [...], "y": [...]} gives {"token": ...}; POST /predict {"token": ..., "x": [...]} gives
{"probabilities": ...}, or for curves the outputs by name. Callers are remembered until it ends.
"""

import http.server
import json
import pathlib
import secrets
import sys
import threading
import time
import urllib.request

import jax
import numpy as np

folder, callers, measured = pathlib.Path(sys.argv[1]), {}, "--measure" in sys.argv
facts = json.loads((folder / "export.json").read_text())
files = (bytearray((folder / f"{name}.bin").read_bytes()) for name in ("adapt", "predict"))
adapt, predict = (jax.jit(jax.export.deserialize(file).call) for file in files)
raw = (folder / "weights.safetensors").read_bytes()  # 8 bytes of length, a header in JSON, then the numbers
start = 8 + int.from_bytes(raw[:8], "little")
at = {name: start + tensor["data_offsets"][0] for name, tensor in json.loads(raw[8:start]).items()}
weights = [np.ndarray(w["shape"], w["dtype"], raw, at[w["name"]]) for w in facts["weights"]]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        x = np.asarray(asked["x"], facts["query"]["dtype"])
        if self.path == "/adapt":
            y, reply = np.asarray(asked["y"], facts["support"]["y"]["dtype"]), {"token": secrets.token_hex()}
            callers[reply["token"]] = jax.block_until_ready(adapt(weights, x, y))
        else:  # compiled once for each number of queries
            outputs = predict(callers[asked["token"]], x)
            named = {o["name"]: value.tolist() for o, value in zip(facts["outputs"], outputs, strict=True)}
            reply = {"probabilities": jax.nn.softmax(outputs[0]).tolist()} if facts["way"] else named
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_): ...


server = http.server.HTTPServer(("127.0.0.1", 0 if measured else 8000), Handler)
threading.Thread(target=server.serve_forever, daemon=measured).start()


def ask(path, **words):
    request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}/{path}", json.dumps(words).encode())
    started = time.perf_counter()
    return json.load(urllib.request.urlopen(request)), 1000 * (time.perf_counter() - started)


if measured:
    draw, taken = np.random.default_rng(0).random, {"adapt": [], "predict": []}
    x, query = draw(facts["support"]["x"]["shape"]).tolist(), draw((1, *facts["query"]["shape"][1:])).tolist()
    y = [i % facts["way"] for i in range(len(x))] if facts["way"] else x
    for _ in range(int(sys.argv[-1]) + 1):  # the first compiles
        caller, adapted_in = ask("adapt", x=x, y=y)
        taken["adapt"].append(adapted_in)
        taken["predict"].append(ask("predict", x=query, **caller)[1])
    for name, each in taken.items():
        print(f"{name}: p50 %.1f ms, p99 %.1f ms" % tuple(np.percentile(each[1:], [50, 99])))
