//! The tour's table: areas of rows.

mod access;
mod apply;
mod cluster;
mod create;
mod edit;
mod get;
mod pods;
mod workloads;

use crate::row::Row;

/// Rows about one matter, in a namespace of that name. They are run in order: later ones stand on earlier ones.
pub struct Area {
    pub name: &'static str,
    pub rows: fn() -> Vec<Row>,
}

pub fn all() -> [Area; 8] {
    [
        Area { name: "cluster", rows: cluster::rows },
        Area { name: "apply", rows: apply::rows },
        Area { name: "get", rows: get::rows },
        Area { name: "edit", rows: edit::rows },
        Area { name: "create", rows: create::rows },
        Area { name: "pods", rows: pods::rows },
        Area { name: "workloads", rows: workloads::rows },
        Area { name: "access", rows: access::rows },
    ]
}

/// What lies in the tour's folder.
pub const FILES: &[(&str, &str)] = &[
    ("greeting", "good morning"),
    ("greeting.env", "MORNING=good\nEVENING=fair\n"),
    ("folder/one", "1"),
    ("folder/two", "2"),
    (
        "kustomize/kustomization.yaml",
        "namePrefix: k-\nresources: [map.yaml]\nlabels: [{pairs: {by: kustomize}}]\n",
    ),
    ("kustomize/map.yaml", "{apiVersion: v1, kind: ConfigMap, metadata: {name: made}, data: {a: '1'}}\n"),
];
