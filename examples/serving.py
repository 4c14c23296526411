"""Serve an exported run over HTTP, with adaptation for each caller; needs jax and flatbuffers, nothing of metakit's.

metakit export runs/RUN --way 5 --shot 1 --out exported
python serving.py exported            # POST /adapt {"x": ..., "y": ...} gives a token; POST /predict {"token", "x"}
python serving.py exported --measure 200
"""

import http.server
import json
import pathlib
import sys
import threading
import time
import urllib.request
import uuid

import jax
import numpy as np

folder = pathlib.Path(sys.argv[1])
facts = json.loads((folder / "export.json").read_text())
adapt, predict = (
    jax.jit(jax.export.deserialize(bytearray((folder / f"{n}.bin").read_bytes())).call) for n in ("adapt", "predict")
)
raw = (folder / "weights.safetensors").read_bytes()  # 8 bytes of length, a header in JSON, then the numbers
start = 8 + int.from_bytes(raw[:8], "little")
header = json.loads(raw[8:start])
kinds = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "U32": np.uint32, "BOOL": np.bool_}
weights = []
for name in facts["weights"]:
    first, last = (start + offset for offset in header[name]["data_offsets"])
    weights.append(np.frombuffer(raw[first:last], kinds[header[name]["dtype"]]).reshape(header[name]["shape"]))
callers = {}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        x = np.asarray(asked["x"], np.float32)
        if self.path == "/adapt":
            token = uuid.uuid4().hex
            callers[token] = adapt(weights, x, np.asarray(asked["y"], facts["support"]["y"]["dtype"]))
            reply = {"token": token}
        else:
            reply = {"outputs": np.asarray(predict(callers[asked["token"]], x)[0]).tolist()}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *_):
        """Say nothing of each request."""


server = http.server.HTTPServer(("127.0.0.1", 0 if "--measure" in sys.argv else 8000), Handler)
if "--measure" not in sys.argv:
    server.serve_forever()
threading.Thread(target=server.serve_forever, daemon=True).start()


def ask(path, **words):
    place = f"http://127.0.0.1:{server.server_port}/{path}"
    return json.load(urllib.request.urlopen(urllib.request.Request(place, json.dumps(words).encode())))


count, draw = int(sys.argv[sys.argv.index("--measure") + 1]), np.random.default_rng(0)
support = draw.random(facts["support"]["x"]["shape"]).tolist()
labels = [i % facts["way"] for i in range(len(support))] if facts["way"] else support
query, seconds = draw.random((1, *facts["query"]["shape"][1:])).tolist(), {"adapt": [], "predict": []}
for _ in range(count + 1):
    started = time.perf_counter()
    token = ask("adapt", x=support, y=labels)["token"]
    adapted = time.perf_counter()
    ask("predict", token=token, x=query)
    seconds["adapt"].append(adapted - started)
    seconds["predict"].append(time.perf_counter() - adapted)
for name, taken in seconds.items():  # the first compiles
    p50, p99 = 1000 * np.percentile(taken[1:], [50, 99])
    print(f"{name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms over {count} requests")
