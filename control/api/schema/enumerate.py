#!/usr/bin/env python3
"""Keeps which values Kubernetes names for a field, for OpenAPI: makes enumerations.txt.

    python3 control/api/schema/enumerate.py ZZ_GENERATED.OPENAPI.GO

The file is pkg/generated/openapi/zz_generated.openapi.go of k8s.io/kubernetes at the version that types.txt is of (see
describe.py): the published swagger.json leaves enumerations out. Only types that types.txt has are kept.
"""

import pathlib
import re
import sys

from describe import known

HERE = pathlib.Path(__file__).parent
HEAD = """\
# Values that Kubernetes names for a field, made by enumerate.py: TYPE FIELD VALUE|VALUE...
# They are told in OpenAPI alone: what is refused, validation says.
"""


def named(lines):
    """TYPE, FIELD, VALUES of each enumeration."""
    kind = field = None
    for line in lines:
        if found := re.match(r"func schema_(?:k8sio_api_(\w+?)|pkg_apis_(meta))_(v\d\w*?)_(\w+)\(", line):
            kind = ".".join(part for part in found.groups() if part)
        elif line.startswith("func "):
            kind = None
        elif found := re.match(r'\t+"([^"]+)": \{$', line):
            field = found[1]
        elif kind and (found := re.search(r"Enum:\s+\[\]interface\{\}\{(.*)\},", line)):
            yield kind, field, re.findall(r'"([^"]*)"', found[1])


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        found = list(named(file))
    types = set(known())
    lines = sorted(f"{kind} {field} {'|'.join(values)}" for kind, field, values in found if kind in types and all(values))
    (HERE / "enumerations.txt").write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


main()
