#!/usr/bin/env python3
"""Keeps what Kubernetes says about its types and fields, for OpenAPI: makes descriptions.json.gz.

    python3 control/api/schema/describe.py SWAGGER.json

SWAGGER.json is api/openapi-spec/swagger.json of k8s.io/kubernetes at the version that types.txt is of (the Go module
proxy serves it: `go mod download k8s.io/kubernetes@v1.36.0`). The output is one object, type -> field -> text, where the
field "" is the type itself; only types that types.txt has are kept. The same input gives the same bytes.
"""

import gzip
import json
import pathlib
import sys

from generate import short

HERE = pathlib.Path(__file__).parent


def known():
    package = None
    for line in (HERE / "types.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("@"):
            package = line[1:]
        elif line and line[0] not in "# ":
            yield f"{package}.{line.split(' ')[0]}"


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        definitions = {short(name): facts for name, facts in json.load(file)["definitions"].items()}
    texts = {}
    for name in sorted(known()):
        facts = definitions.get(name, {})
        own = {"": facts.get("description", "")}
        own |= {field: value.get("description", "") for field, value in sorted(facts.get("properties", {}).items())}
        texts[name] = {field: text for field, text in own.items() if text}
    text = json.dumps(texts, separators=(",", ":"), ensure_ascii=False)
    (HERE / "descriptions.json.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    main()
