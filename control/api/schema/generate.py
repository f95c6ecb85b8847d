#!/usr/bin/env python3
"""Turns the facts about Kubernetes' API types into types.txt, the form that `schema` reads at start.

    python3 control/api/schema/generate.py KUBERNETES-SCHEMA.json > control/api/schema/types.txt

The input has two tables. `types`: full type name -> fields `f` (a type, or an object with the type `t` and its
list type, map keys, map type and patch strategy), `required`, `map-type`, `gvk`, or `is` for a type that is no
object. `paths`: URL -> kind and verbs; used here to learn which kinds have a status subresource.

The output, one line each:

    @PACKAGE                              the types below belong to it
    TYPE [atomic] [status] [is:FORM] [GROUP/VERSION/KIND ...]
     FIELD SHAPE [!] [atomic|granular|set|map:KEY,KEY] [merge:[KEY]] [retain] [replace]

SHAPE is a scalar (string bool int32 int64 double bytes), a type of this package (Name), a type of another
(package.Name), a list []SHAPE or a map {}SHAPE. `!` marks a required field. A list without a word is atomic.
"""

import json
import sys

PREFIXES = (
    "io.k8s.api.",
    "io.k8s.apimachinery.pkg.apis.",
    "io.k8s.apimachinery.pkg.",
    "io.k8s.apiextensions-apiserver.pkg.apis.",
    "io.k8s.kube-aggregator.pkg.apis.",
)
SCALARS = {
    "string": "string",
    "boolean": "bool",
    "integer:int32": "int32",
    "integer:int64": "int64",
    "number:double": "double",
    "string:byte": "bytes",
}
FORMS = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "quantity",
    "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime": "microtime",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Time": "time",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "int-or-string",
}


def short(name):
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix):]
    return name


def shape(text, package):
    for mark in ("[]", "{}"):
        if text.startswith(mark):
            return mark + shape(text[2:], package)
    if text in SCALARS:
        return SCALARS[text]
    name = short(text)
    home, _, last = name.rpartition(".")
    return last if home == package else name


def field(name, facts, required, package):
    if isinstance(facts, str):
        facts = {"t": facts}
    words = [name, shape(facts["t"], package)]
    if name in required:
        words.append("!")
    kind = facts.get("list-type")
    if kind == "map":
        words.append("map:" + ",".join(facts["list-map-keys"]))
    elif kind == "set":
        words.append("set")
    if facts.get("map-type"):
        words.append(facts["map-type"])
    strategies = facts.get("patch-strategy", "").split(",")
    if "merge" in strategies:
        words.append("merge:" + facts.get("patch-merge-key", ""))
    if "retainKeys" in strategies:
        words.append("retain")
    if "replace" in strategies:
        words.append("replace")
    return " " + " ".join(words)


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        source = json.load(file)
    with_status = {facts["gvk"] for path, facts in source["paths"].items() if path.endswith("/status")}
    print("# The API types of Kubernetes 1.36, made by control/api/schema/generate.py (which says what the lines mean).")
    print("# Do not edit: change the generator, or put facts of our own into defaults.txt.")
    home = None
    for name, facts in sorted(source["types"].items(), key=lambda item: short(item[0])):
        package, _, last = short(name).rpartition(".")
        if package != home:
            print("@" + package)
            home = package
        words = [last]
        if facts.get("map-type") == "atomic":
            words.append("atomic")
        gvks = facts.get("gvk", [])
        if any(gvk in with_status for gvk in gvks):
            words.append("status")
        if "is" in facts:
            words.append("is:" + FORMS.get(name, "any" if facts["is"] == "any" else "object"))
        # Types of every group and version (DeleteOptions, WatchEvent) are listed with "...".
        words += [gvk for gvk in gvks if gvk != "..."]
        print(" ".join(words))
        for key, value in sorted(facts.get("f", {}).items()):
            print(field(key, value, facts.get("required", []), package))


if __name__ == "__main__":
    main()
